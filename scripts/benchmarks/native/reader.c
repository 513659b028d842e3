/* Read files as a program would: open, read to the end, close; one after the other in each process.
 *
 *     reader DIRECTORY [--names FILE] [--jobs N] [--limit N] [--seconds S] [--check] [--announce FILE]
 *     reader DIRECTORY --list
 *
 * Without --names the directory is listed (and timed) and its files are read in the order of their names;
 * with it, those of FILE, one a line, in that order. --jobs processes take them in turn. --limit and --seconds
 * end early. --announce writes the names to FILE before the first read, within the time. --check compares
 * the first 8 bytes of every 4 KiB with what tars.py puts there: key << 20 | page, little-endian.
 *
 * Prints one JSON object: files, bytes, wrong (pages), errors (files), list, first and read (seconds: of
 * listing; from the start to the end of the first file; of reading), p50 and p99 (seconds a file took).
 * Not for measuring itself: a process reads about 500,000 cached files a second.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (1 << 20)
#define PAGE 4096

static char **names;
static size_t count, room, listed;

struct tally { /* of one process, in memory shared with the first */
    uint64_t files, bytes, wrong, errors;
    double first;
};

static struct tally *tallies;
static double *times; /* seconds that each file took; 0: not read */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void add(const char *name) {
    if (count == room) names = realloc(names, (room = room ? 2 * room : 1024) * sizeof *names);
    names[count++] = strdup(name);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *directory) {
    DIR *opened = opendir(directory);
    if (!opened) die(directory);
    for (struct dirent *entry; (entry = readdir(opened));)
        if (entry->d_name[0] != '.') add(entry->d_name);
    closedir(opened);
    qsort(names, count, sizeof *names, by_name);
}

static void load(const char *path) {
    FILE *file = fopen(path, "r");
    char line[512];
    if (!file) die(path);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        add(line);
    }
    fclose(file);
}

static void announce(const char *path) {
    int fd = open(path, O_WRONLY);
    if (fd < 0) die(path);
    size_t used = 0;
    static char buffer[64 << 10];
    for (size_t i = 0; i <= count; i++) {
        size_t length = i < count ? strlen(names[i]) : 0;
        if (i == count || used + length + 1 > sizeof buffer) {
            for (size_t sent = 0; sent < used;) {
                ssize_t done = write(fd, buffer + sent, used - sent);
                if (done < 0) die(path);
                sent += done;
            }
            used = 0;
        }
        if (i < count) {
            memcpy(buffer + used, names[i], length);
            buffer[used + length] = '\n';
            used += length + 1;
        }
    }
    if (close(fd)) die(path);
}

static uint64_t wrong_pages(const char *data, size_t size, uint64_t offset, uint64_t key) {
    uint64_t wrong = 0;
    for (size_t at = (PAGE - offset % PAGE) % PAGE; at + 8 <= size; at += PAGE) {
        uint64_t mark;
        memcpy(&mark, data + at, 8);
        wrong += mark != (key << 20 | (offset + at) / PAGE);
    }
    return wrong;
}

static void read_one(int directory, const char *name, char *buffer, bool check, struct tally *tally) {
    int fd = openat(directory, name, O_RDONLY);
    uint64_t offset = 0;
    ssize_t got = -1;
    if (fd >= 0) {
        while ((got = read(fd, buffer, BUFFER)) > 0) {
            if (check) tally->wrong += wrong_pages(buffer, got, offset, strtoull(name, NULL, 10));
            offset += got;
        }
        close(fd);
    }
    if (got < 0) tally->errors++;
    else tally->files++;
    tally->bytes += offset;
}

static void work(int directory, int job, int jobs, bool check, double seconds, int gate) {
    struct tally *tally = tallies + job;
    char *buffer = malloc(BUFFER), byte;
    memset(buffer, 1, BUFFER);
    if (read(gate, &byte, 1) < 0) die("gate"); /* until it is closed */
    double begin = now(), before = begin;
    for (size_t i = job; i < count; i += jobs) {
        read_one(directory, names[i], buffer, check, tally);
        double after = now();
        times[i] = after - before;
        if (!tally->first) tally->first = after - begin;
        before = after;
        if (seconds && after - begin > seconds) break;
    }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(int jobs, double listing, double reading) {
    struct tally all = {0};
    for (int job = 0; job < jobs; job++) {
        all.files += tallies[job].files;
        all.bytes += tallies[job].bytes;
        all.wrong += tallies[job].wrong;
        all.errors += tallies[job].errors;
        if (!job || tallies[job].first < all.first) all.first = tallies[job].first;
    }
    size_t measured = 0;
    for (size_t i = 0; i < count; i++)
        if (times[i]) times[measured++] = times[i];
    qsort(times, measured, sizeof *times, by_size);
    double p50 = measured ? times[measured / 2] : 0, p99 = measured ? times[measured * 99 / 100] : 0;
    printf("{\"files\": %lu, \"bytes\": %lu, \"wrong\": %lu, \"errors\": %lu, \"listed\": %zu, \"list\": %.6f, "
           "\"first\": %.6f, \"read\": %.6f, \"p50\": %.9f, \"p99\": %.9f}\n",
           all.files, all.bytes, all.wrong, all.errors, listed, listing, all.first, reading, p50, p99);
}

static void *shared(size_t size) {
    void *memory = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    return memory;
}

int main(int argc, char **argv) {
    const char *from = NULL, *tell = NULL;
    int jobs = 1;
    size_t limit = 0;
    double seconds = 0;
    bool check = false, only_list = false;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--check")) check = true;
        else if (!strcmp(argv[i], "--list")) only_list = true;
        else if (i + 1 == argc) return 2;
        else if (!strcmp(argv[i], "--names")) from = argv[++i];
        else if (!strcmp(argv[i], "--announce")) tell = argv[++i];
        else if (!strcmp(argv[i], "--jobs")) jobs = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--limit")) limit = atoll(argv[++i]);
        else if (!strcmp(argv[i], "--seconds")) seconds = atof(argv[++i]);
        else return 2;
    }
    if (argc < 2 || jobs < 1) return 2;
    double begin = now();
    if (from) load(from);
    else list(argv[1]);
    double listing = now() - begin;
    listed = count;
    if (limit && limit < count) count = limit;
    if (only_list) count = 0;
    int directory = open(argv[1], O_RDONLY | O_DIRECTORY), gate[2];
    if (directory < 0 || pipe(gate)) die(argv[1]);
    tallies = shared(jobs * sizeof *tallies);
    times = shared(count * sizeof *times);
    for (int job = 0; job < jobs; job++) {
        pid_t child = fork();
        if (child < 0) die("fork");
        if (!child) {
            close(gate[1]);
            work(directory, job, jobs, check, seconds, gate[0]);
            _exit(0);
        }
    }
    begin = now();
    if (tell) announce(tell);
    close(gate[1]);
    for (int job = 0; job < jobs; job++) wait(NULL);
    double reading = now() - begin;
    report(jobs, listing, reading);
    return 0;
}
