/* The null file system of nullfs.py once more, in C with libfuse's low-level API: what the kernel and
 * libfuse cost without Python.
 *
 *     nullfs MOUNTPOINT COUNT SIZE
 *
 * One directory of COUNT files of SIZE bytes, contents from one buffer, the same answers to the kernel
 * (infinite timeouts, keep_cache, FLUSH answered ENOSYS). Runs in the foreground, in one thread.
 */
#define FUSE_USE_VERSION 34
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FOREVER (365 * 24 * 3600.0)

static uint64_t count, size;
static char *content;

static struct stat attributes(fuse_ino_t inode) {
    struct stat found = {.st_ino = inode, .st_nlink = 1, .st_mode = S_IFREG | 0444, .st_size = size};
    if (inode == FUSE_ROOT_ID) {
        found.st_mode = S_IFDIR | 0555;
        found.st_size = 0;
    }
    return found;
}

static struct fuse_entry_param entry(uint64_t key) {
    return (struct fuse_entry_param){
        .ino = key + 2, .attr = attributes(key + 2), .attr_timeout = FOREVER, .entry_timeout = FOREVER};
}

static void do_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    char *end;
    uint64_t key = strtoull(name, &end, 10);
    (void)parent;
    if (end != name + 20 || key >= count) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    struct fuse_entry_param found = entry(key);
    fuse_reply_entry(request, &found);
}

static void do_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file) {
    struct stat found = attributes(inode);
    (void)file;
    fuse_reply_attr(request, &found, FOREVER);
}

static void do_readdirplus(fuse_req_t request, fuse_ino_t inode, size_t room, off_t start, struct fuse_file_info *file) {
    char *buffer = malloc(room);
    size_t used = 0;
    (void)inode, (void)file;
    for (uint64_t key = start; key < count; key++) {
        char name[32];
        struct fuse_entry_param found = entry(key);
        snprintf(name, sizeof name, "%020lu.bin", (unsigned long)key);
        size_t needed = fuse_add_direntry_plus(request, buffer + used, room - used, name, &found, key + 1);
        if (needed > room - used) break;
        used += needed;
    }
    fuse_reply_buf(request, buffer, used);
    free(buffer);
}

static void do_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file) {
    (void)inode;
    file->keep_cache = 1;
    fuse_reply_open(request, file);
}

static void do_read(fuse_req_t request, fuse_ino_t inode, size_t wanted, off_t offset, struct fuse_file_info *file) {
    (void)inode, (void)file;
    size_t left = (uint64_t)offset < size ? size - offset : 0;
    fuse_reply_buf(request, content, wanted < left ? wanted : left);
}

static void do_flush(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file) {
    (void)inode, (void)file;
    fuse_reply_err(request, ENOSYS);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = do_lookup,
    .getattr = do_getattr,
    .readdirplus = do_readdirplus,
    .open = do_open,
    .read = do_read,
    .flush = do_flush,
};

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    count = strtoull(argv[2], NULL, 10);
    size = strtoull(argv[3], NULL, 10);
    content = calloc(1, 4 << 20); /* more than one READ asks for */
    char *options[] = {argv[0], "-oro,fsname=nullfs,subtype=nullfs"};
    struct fuse_args arguments = FUSE_ARGS_INIT(2, options);
    struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
    if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1])) return 1;
    int failed = fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return failed < 0;
}
