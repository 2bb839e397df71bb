/* What the benchmarks of shared debugging ask with: debuggers cheap enough not to be what is measured.
 *
 *   load reads PATH SESSIONS DEPTH BASE  connect so many sessions and say "ready"; then for each number of seconds on
 *                                        stdin read memory, 2,000 bytes at a time, each session its own mebibyte from
 *                                        BASE (hexadecimal) on, with DEPTH requests of each under way; answer with the
 *                                        seconds it took and each session's replies
 *   load steps PATH WAITING              connect a controller and so many sessions that wait for a stop, say "ready";
 *                                        then for each N on stdin step N times; answer with the seconds it took and
 *                                        how often somebody who waits was told of a stop
 *   load answer PATH                     a server that takes one debugger and answers each packet with "QCp1.1"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
#define ROOM 65536
#define READ 2000
#define SPAN (1 << 20)

struct session {
    int fd, no_ack;
    size_t have;
    long replies;
    unsigned long base, at;
    char in[ROOM + 1];
};

static struct session all[MOST];

static void die(const char *what) { perror(what); exit(1); }

static void wrong(const char *what, const char *packet) {
    fprintf(stderr, "%s: %.80s\n", what, packet);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) { errno = ENAMETOOLONG; die(path); }
    strcpy(a.sun_path, path);
    return a;
}

static void put(struct session *s, const char *data, size_t length) {
    if (write(s->fd, data, length) != (ssize_t)length) die("write");
}

static size_t framed(char *packet, const char *payload) {
    unsigned char sum = 0;
    for (const char *p = payload; *p; p++) sum += *p;
    return sprintf(packet, "$%s#%02x", payload, sum);
}

/* Ask; where acknowledgements are still due, as on QEMU's stub, the last reply's goes in the same write, as gdb's does. */
static void say(struct session *s, const char *payload) {
    char packet[256] = "+";
    if (s->no_ack) put(s, packet, framed(packet, payload));
    else put(s, packet, 1 + framed(packet + 1, payload));
}

static void fill(struct session *s) {
    ssize_t n = read(s->fd, s->in + s->have, ROOM - s->have);
    if (n < 0) die("read");
    if (n == 0) wrong("the connection was closed", "");
    s->have += n;
}

/* The length of the first packet, from its '$' to its sum; 0 while it is not whole.  What comes before it goes. */
static size_t whole(struct session *s, size_t from) {
    char *start = memchr(s->in + from, '$', s->have - from), *end;
    if (start == NULL) return 0;
    if (start != s->in + from) wrong("noise before a packet", s->in + from);
    end = memchr(start, '#', s->in + s->have - start);
    return end == NULL || end + 3 > s->in + s->have ? 0 : (size_t)(end + 3 - start);
}

static void drop(struct session *s, size_t length) {
    s->have -= length;
    memmove(s->in, s->in + length, s->have);
    s->in[s->have] = 0;
}

/* Ask one thing and leave its reply in `reply`; text and, unless it was asked for, word of a stop are passed over. */
static void ask(struct session *s, const char *payload, char *reply, size_t room) {
    say(s, payload);
    for (;;) {
        size_t length;
        while (s->have && s->in[0] == '+') drop(s, 1);
        length = s->have ? whole(s, 0) : 0;
        if (length == 0) { fill(s); continue; }
        snprintf(reply, room, "%.*s", (int)(length - 4), s->in + 1);
        drop(s, length);
        if (reply[0] == 'T' ? !strcmp(payload, "?") && strncmp(reply, "T02", 3) : reply[0] != 'O' || reply[1] == 'K')
            return;
    }
}

static void join(struct session *s, const char *path) {
    struct sockaddr_un a = address(path);
    char reply[4096];
    s->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(s->fd, (struct sockaddr *)&a, sizeof a)) die(path);
    ask(s, "qSupported:multiprocess+;swbreak+;vContSupported+", reply, sizeof reply);
    if (strstr(reply, "PacketSize") == NULL) wrong("no features", reply);
    ask(s, "QStartNoAckMode", reply, sizeof reply);
    s->no_ack = !strcmp(reply, "OK");
}

static void read_next(struct session *s) {
    char payload[64];
    sprintf(payload, "m%lx,%x", s->base + s->at, READ);
    s->at = s->at + 2 * READ > SPAN ? 0 : s->at + READ;
    say(s, payload);
}

/* Take all replies that are here; each is the whole memory that was asked for. */
static int take_reads(struct session *s) {
    size_t from = 0, length;
    int taken = 0;
    for (;;) {
        while (from < s->have && s->in[from] == '+') from++;
        if (from == s->have || (length = whole(s, from)) == 0) break;
        if (length != 2 * READ + 4) wrong("not the memory that was asked for", s->in + from);
        from += length;
        taken++;
    }
    if (from) drop(s, from);
    s->replies += taken;
    return taken;
}

static int reads(const char *path, int sessions, int depth, unsigned long base) {
    struct pollfd polled[MOST];
    double seconds;
    for (int n = 0; n < sessions; n++) {
        join(&all[n], path);
        all[n].base = base + (unsigned long)n * SPAN;
        polled[n] = (struct pollfd){all[n].fd, POLLIN, 0};
    }
    puts("ready");
    while (scanf("%lf", &seconds) == 1) {
        double start = now(), end = start + seconds, counted = 0;
        int under_way = 0, over = 0;
        for (int n = 0; n < sessions; n++) {
            all[n].replies = 0;
            for (int k = 0; k < depth; k++, under_way++) read_next(&all[n]);
        }
        while (under_way) {
            if (poll(polled, sessions, 20000) <= 0) wrong("no reply within 20 s", "");
            if (!over && now() >= end) {
                /* What comes from here on is drained, and not counted. */
                over = 1;
                counted = now() - start;
                printf("%.6f", counted);
                for (int n = 0; n < sessions; n++) printf(" %ld", all[n].replies);
                puts("");
            }
            for (int n = 0; n < sessions; n++) {
                if (!polled[n].revents) continue;
                fill(&all[n]);
                for (int taken = take_reads(&all[n]); taken > 0; taken--) {
                    if (over) under_way--;
                    else read_next(&all[n]);
                }
            }
        }
    }
    return 0;
}

static void stop_thread(const char *reply, char *thread, size_t room) {
    const char *at = strstr(reply, "thread:");
    if (at == NULL) wrong("a stop without a thread", reply);
    at += 7;
    snprintf(thread, room, "%.*s", (int)strcspn(at, ";"), at);
}

static int steps(const char *path, int waiting) {
    struct pollfd polled[MOST];
    char reply[4096], thread[64], step[160];
    int count;
    for (int n = 0; n <= waiting; n++) {
        join(&all[n], path);
        ask(&all[n], "?", reply, sizeof reply);
        if (n == 0) stop_thread(reply, thread, sizeof thread);
        else say(&all[n], "vCont;c");
        polled[n] = (struct pollfd){all[n].fd, POLLIN, 0};
    }
    snprintf(step, sizeof step, "vCont;s:%s;c:p1.-1", thread);
    puts("ready");
    while (scanf("%d", &count) == 1) {
        double start = now();
        long told = 0;
        for (int left = count; left > 0;) {
            int stopped = 0;
            say(&all[0], step);
            while (!stopped) {
                if (poll(polled, waiting + 1, 20000) <= 0) wrong("no stop within 20 s", "");
                for (int n = 0; n <= waiting; n++) {
                    size_t length;
                    if (!polled[n].revents) continue;
                    fill(&all[n]);
                    while (all[n].have && (length = whole(&all[n], 0)) != 0) {
                        char letter = all[n].in[1];
                        if (letter != 'T' && letter != 'O') wrong("not a stop", all[n].in);
                        if (letter == 'T' && n == 0) stopped = 1;
                        drop(&all[n], length);
                        if (letter == 'T' && n > 0) {
                            told++;
                            say(&all[n], "vCont;c");
                        }
                    }
                }
            }
            left--;
        }
        printf("%.6f %ld\n", now() - start, told);
    }
    return 0;
}

static int answer(const char *path) {
    struct sockaddr_un a = address(path);
    struct session *s = &all[0];
    char packet[64];
    size_t length = framed(packet, "QCp1.1");
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1)) die(path);
    s->fd = accept(fd, NULL, NULL);
    if (s->fd < 0) die("accept");
    for (;;) {
        struct pollfd polled = {s->fd, POLLIN, 0};
        ssize_t n;
        if (poll(&polled, 1, -1) < 0) die("poll");
        n = read(s->fd, s->in, ROOM);
        if (n <= 0) return 0;
        for (char *p = s->in; (p = memchr(p, '#', s->in + n - p)) != NULL; p++) put(s, packet, length);
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 6 && !strcmp(argv[1], "reads") && atoi(argv[3]) <= MOST)
        return reads(argv[2], atoi(argv[3]), atoi(argv[4]), strtoul(argv[5], NULL, 16));
    if (argc == 4 && !strcmp(argv[1], "steps") && atoi(argv[3]) < MOST) return steps(argv[2], atoi(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "answer")) return answer(argv[2]);
    fprintf(stderr, "%s: see the top of its source\n", argv[0]);
    return 2;
}
