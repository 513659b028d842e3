/* A TCP relay on loopback that delays what clients send and counts their HTTP requests.
 *
 *     relay UPSTREAM_PORT
 *
 * Prints the port it listens on. Then obeys its standard input, a line at a time: "delay MICROSECONDS"
 * (from now on), "count" (prints a JSON object: requests by kind, bytes up and down, since the start).
 * Ends when its input does.
 *
 * What a client sends reaches the server so much later, in order and at full rate, as over a long line;
 * answers are spliced through without being looked at. The bytes are untouched (the Host header too, so
 * signatures hold). Not for faults, nor for more hosts than this one. One thread, one epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256 << 10)
#define HELD_LIMIT (32 << 20) /* bytes one client may have under way: 1 GB/s over 30 ms */
#define PIPE_SIZE (1 << 20)   /* what a user may ask for without being root */
#define HEAD_LIMIT (32 << 10)

enum kind { GET, LIST, HEAD, PUT, POST, DELETE, OTHER, KINDS };
static const char *const kind_names[KINDS] = {"get", "list", "head", "put", "post", "delete", "other"};

struct chunk { /* read from a client, on its way to the server */
    struct chunk *next;       /* of the same connection */
    struct chunk *next_due;   /* of all connections, in the order in which they are due */
    struct connection *owner; /* NULL: the connection has gone */
    int64_t due;              /* nanoseconds */
    bool ready;
    size_t size, sent;
    char data[];
};

struct end { /* one socket; what epoll gives back */
    int fd;
    uint32_t wanted;
    struct connection *connection;
};

struct connection {
    struct end client, server;
    int pipe[2];
    size_t piped; /* bytes in the pipe */
    struct chunk *first, *last;
    size_t held;
    bool client_done, server_done, dead;
    char head[HEAD_LIMIT];
    size_t head_size;
    uint64_t body_left;
    bool chunked;
    struct connection *next_dead;
};

static int epoll, timer, upstream;
static int64_t delay;
static struct chunk *due_first, *due_last;
static struct connection *graves;
static uint64_t requests[KINDS], up, down;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void want(struct end *end, uint32_t events) {
    if (end->wanted == events) return;
    struct epoll_event event = {.events = events, .data.ptr = end};
    epoll_ctl(epoll, EPOLL_CTL_MOD, end->fd, &event);
    end->wanted = events;
}

/* Counting ------------------------------------------------------------------------------------- */

static enum kind kind_of(const char *head) {
    const char *line_end = strstr(head, "\r\n");
    const char *query = strchr(head, '?');
    bool asks = query && query < line_end && !strstr(head, "X-Amz-Signature") && !strstr(head, "x-id=GetObject");
    if (!strncmp(head, "GET ", 4)) return asks ? LIST : GET;
    if (!strncmp(head, "HEAD ", 5)) return HEAD;
    if (!strncmp(head, "PUT ", 4)) return PUT;
    if (!strncmp(head, "POST ", 5)) return POST;
    if (!strncmp(head, "DELETE ", 7)) return DELETE;
    return OTHER;
}

static void count_head(struct connection *c) {
    c->head[c->head_size] = 0;
    requests[kind_of(c->head)]++;
    c->body_left = 0;
    c->chunked = false;
    for (char *line = strstr(c->head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) c->body_left = strtoull(line + 17, NULL, 10);
        if (!strncasecmp(line + 2, "transfer-encoding:", 18)) c->chunked = true;
    }
    c->head_size = 0;
}

/* Follow the requests in what a client sends. The end of a chunked body is only guessed: the next read
 * that begins with a method. */
static void count(struct connection *c, const char *data, size_t size) {
    up += size;
    if (c->chunked) {
        if (size < 8 || !(memcmp(data, "GET ", 4) == 0 || memcmp(data, "PUT ", 4) == 0 ||
                          memcmp(data, "HEAD ", 5) == 0 || memcmp(data, "POST ", 5) == 0 ||
                          memcmp(data, "DELETE ", 7) == 0))
            return;
        c->chunked = false;
    }
    while (size) {
        if (c->body_left) {
            size_t skipped = size < c->body_left ? size : c->body_left;
            c->body_left -= skipped;
            data += skipped;
            size -= skipped;
            continue;
        }
        if (c->head_size == HEAD_LIMIT - 1) { /* no HTTP that anybody sends */
            c->head_size = 0;
            requests[OTHER]++;
        }
        c->head[c->head_size++] = *data++;
        size--;
        if (c->head_size >= 4 && !memcmp(c->head + c->head_size - 4, "\r\n\r\n", 4)) {
            count_head(c);
            if (c->chunked) return;
        }
    }
}

static void report(void) {
    printf("{");
    for (int kind = 0; kind < KINDS; kind++) printf("\"%s\": %lu, ", kind_names[kind], requests[kind]);
    printf("\"up\": %lu, \"down\": %lu}\n", up, down);
    fflush(stdout);
}

/* Connections ---------------------------------------------------------------------------------- */

static void hang_up(struct connection *c) {
    if (c->dead) return;
    c->dead = true;
    close(c->client.fd);
    close(c->server.fd);
    close(c->pipe[0]);
    close(c->pipe[1]);
    for (struct chunk *chunk = c->first, *next; chunk; chunk = next) {
        next = chunk->next;
        if (chunk->ready)
            free(chunk);
        else
            chunk->owner = NULL; /* the timer's list still holds it */
    }
    c->next_dead = graves; /* events of this round may still point to it */
    graves = c;
}

static void bury(void) {
    while (graves) {
        struct connection *next = graves->next_dead;
        free(graves);
        graves = next;
    }
}

static void set_timer(void) {
    struct itimerspec when = {0};
    if (due_first) {
        when.it_value.tv_sec = due_first->due / 1000000000;
        when.it_value.tv_nsec = due_first->due % 1000000000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void reconsider(struct connection *c) {
    uint32_t client = 0, server = 0;
    if (!c->client_done && c->held < HELD_LIMIT) client |= EPOLLIN;
    if (c->piped) client |= EPOLLOUT;
    if (!c->server_done && !c->piped) server |= EPOLLIN;
    if (c->first && c->first->ready) server |= EPOLLOUT;
    want(&c->client, client);
    want(&c->server, server);
}

/* Send the server what is due. */
static void forward(struct connection *c) {
    while (c->first && c->first->ready) {
        struct chunk *chunk = c->first;
        ssize_t sent = send(c->server.fd, chunk->data + chunk->sent, chunk->size - chunk->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) hang_up(c);
            else reconsider(c);
            return;
        }
        chunk->sent += sent;
        c->held -= sent;
        if (chunk->sent < chunk->size) continue;
        c->first = chunk->next;
        if (!c->first) c->last = NULL;
        free(chunk);
    }
    if (c->client_done && !c->first) shutdown(c->server.fd, SHUT_WR);
    reconsider(c);
}

static void take(struct connection *c) {
    static char buffer[CHUNK];
    while (c->held < HELD_LIMIT) {
        ssize_t got = recv(c->client.fd, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EAGAIN) break;
        if (got <= 0) {
            if (got < 0) {
                hang_up(c);
                return;
            }
            c->client_done = true;
            break;
        }
        count(c, buffer, got);
        struct chunk *chunk = malloc(sizeof *chunk + got);
        if (!chunk) die("malloc");
        *chunk = (struct chunk){.owner = c, .size = got, .ready = !delay && !due_first};
        memcpy(chunk->data, buffer, got);
        if (c->last) c->last->next = chunk;
        else c->first = chunk;
        c->last = chunk;
        c->held += got;
        if (!chunk->ready) {
            chunk->due = now() + delay;
            if (due_last && due_last->due > chunk->due) chunk->due = due_last->due; /* the delay was cut */
            if (due_last) due_last->next_due = chunk;
            else due_first = chunk;
            due_last = chunk;
            if (due_first == chunk) set_timer();
        }
        if ((size_t)got < sizeof buffer) break;
    }
    forward(c);
}

static void on_timer(void) {
    uint64_t expirations;
    if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
    for (int64_t limit = now(); due_first && due_first->due <= limit;) {
        struct chunk *chunk = due_first;
        due_first = chunk->next_due;
        if (!due_first) due_last = NULL;
        chunk->ready = true;
        if (chunk->owner) forward(chunk->owner); /* frees the chunk when it is sent */
        else free(chunk);
    }
    set_timer();
}

/* Pass an answer back; the pipe is empty whenever more is taken from the server. */
static void answer(struct connection *c) {
    for (;;) {
        while (c->piped) {
            ssize_t sent = splice(c->pipe[0], NULL, c->client.fd, NULL, c->piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            if (sent < 0 && errno == EAGAIN) {
                reconsider(c);
                return;
            }
            if (sent <= 0) {
                hang_up(c);
                return;
            }
            c->piped -= sent;
        }
        if (c->server_done) {
            hang_up(c);
            return;
        }
        ssize_t got = splice(c->server.fd, NULL, c->pipe[1], NULL, PIPE_SIZE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (got < 0 && errno == EAGAIN) break;
        if (got < 0) {
            hang_up(c);
            return;
        }
        c->server_done = got == 0;
        c->piped = got;
        down += got;
    }
    reconsider(c);
}

static void prepare(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void welcome(int listener) {
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) return;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(upstream)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct connection *c = calloc(1, sizeof *c);
    if (!c || server < 0 || connect(server, (struct sockaddr *)&address, sizeof address) || pipe2(c->pipe, O_NONBLOCK | O_CLOEXEC)) {
        free(c);
        close(client);
        if (server >= 0) close(server);
        return;
    }
    fcntl(c->pipe[1], F_SETPIPE_SZ, PIPE_SIZE);
    prepare(client);
    prepare(server);
    c->client = (struct end){client, EPOLLIN, c};
    c->server = (struct end){server, EPOLLIN, c};
    struct end *ends[] = {&c->client, &c->server};
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = ends[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, ends[i]->fd, &event);
    }
}

static void on_event(struct end *end, uint32_t events) {
    struct connection *c = end->connection;
    if (c->dead) return;
    if (end == &c->client) {
        if (events & (EPOLLHUP | EPOLLERR)) hang_up(c); /* gone, both ways */
        if (!c->dead && events & EPOLLIN) take(c);
        if (!c->dead && events & EPOLLOUT) answer(c);
    } else {
        if (events & EPOLLOUT) forward(c);
        if (!c->dead && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            if (c->piped) { /* it waits for the client; the rest of the answer is still in the socket */
                if (events & EPOLLERR) hang_up(c);
            } else {
                answer(c);
            }
        }
    }
}

static void obey(void) {
    static char line[256];
    static size_t size;
    ssize_t got = read(0, line + size, sizeof line - 1 - size);
    if (got <= 0) exit(0);
    size += got;
    line[size] = 0;
    for (char *end; (end = strchr(line, '\n'));) {
        *end = 0;
        if (!strncmp(line, "delay ", 6)) delay = atoll(line + 6) * 1000;
        if (!strcmp(line, "count")) report();
        size -= end + 1 - line;
        memmove(line, end + 1, size + 1);
    }
}

static int listen_somewhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1024)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    upstream = atoi(argv[1]);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for whoever started us; our input ends with it */
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    static struct end control = {.fd = 0}, clock_end, door;
    clock_end.fd = timer;
    door.fd = listen_somewhere();
    struct end *fixed[] = {&control, &clock_end, &door};
    for (int i = 0; i < 3; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = fixed[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fixed[i]->fd, &event)) die("epoll_ctl");
    }
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct end *end = events[i].data.ptr;
            if (end == &control) obey();
            else if (end == &clock_end) on_timer();
            else if (end == &door) welcome(door.fd);
            else on_event(end, events[i].events);
        }
        bury();
    }
}
