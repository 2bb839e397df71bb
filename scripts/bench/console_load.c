/* What the console benchmarks send and read with: fast enough not to be what is measured.
 *
 *   load flood PATH CHUNK               listen, accept one line; then for each "N" on stdin write N bytes in writes of
 *                                       CHUNK bytes, and answer with the seconds it took
 *   load pty CHUNK                      the same into the master of a new pty; says its slave's name first
 *   load trickle DIR LINES CHUNK MS     listen on DIR/0 …; when all are connected say how long that took; then for each
 *                                       "N" on stdin write CHUNK bytes to every line each MS milliseconds, N times,
 *                                       spread over slots of 1 ms; answer "SECONDS SENT DROPPED"
 *   load drain SECONDS-OF-SILENCE FD... read each inherited descriptor until it is silent that long; answer the counts
 *   load read RING-BYTES MAX-READ PATH  the peer "C": read lines named on stdin into mapped rings PATH.N, until SIGTERM
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static char zeros[1 << 20];

static void die(const char *what) { perror(what); exit(1); }

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

static int listen_on(const char *path) {
    struct sockaddr_un a = address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 8)) die(path);
    return fd;
}

static void write_all(int fd, size_t chunk, long long total) {
    while (total > 0) {
        ssize_t n = write(fd, zeros, chunk < (size_t)total ? chunk : (size_t)total);
        if (n < 0) { if (errno == EINTR) continue; die("write"); }
        total -= n;
    }
}

static int flood(int fd, size_t chunk) {
    long long total;
    while (scanf("%lld", &total) == 1) {
        double start = now();
        write_all(fd, chunk, total);
        printf("%.6f\n", now() - start);
    }
    return 0;
}

static int new_pty(void) {
    struct termios t;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) die("pty");
    tcgetattr(master, &t);
    cfmakeraw(&t);
    tcsetattr(master, TCSANOW, &t);
    return master;
}

static int trickle(const char *dir, int lines, size_t chunk, int interval) {
    int *fds = calloc(lines, sizeof *fds);
    long long rounds;
    for (int i = 0; i < lines; i++) {
        char path[200];
        snprintf(path, sizeof path, "%s/%d", dir, i);
        fds[i] = listen_on(path);
    }
    puts("listening");
    double start = now();
    for (int i = 0; i < lines; i++) {
        int fd = accept4(fds[i], NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) die("accept");
        close(fds[i]);
        fds[i] = fd;
    }
    printf("%.3f\n", now() - start);
    while (scanf("%lld", &rounds) == 1) {
        long long sent = 0, dropped = 0;
        start = now();
        for (long long slot = 0; slot < rounds * interval; slot++) {
            double due = start + slot / 1e3, wait = due - now();
            if (wait > 0) {
                struct timespec t = {0, (long)(wait * 1e9)};
                nanosleep(&t, NULL);
            }
            for (int i = slot % interval; i < lines; i += interval) {
                ssize_t n = write(fds[i], zeros, chunk);
                if (n > 0) sent += n;
                dropped += chunk - (n > 0 ? n : 0);
            }
        }
        printf("%.6f %lld %lld\n", now() - start, sent, dropped);
    }
    return 0;
}

static int drain(double silence, int count, char **names) {
    struct pollfd *p = calloc(count, sizeof *p);
    long long *got = calloc(count, sizeof *got);
    for (int i = 0; i < count; i++) p[i] = (struct pollfd){.fd = atoi(names[i]), .events = POLLIN};
    while (poll(p, count, (int)(silence * 1000)) > 0)
        for (int i = 0; i < count; i++)
            if (p[i].revents) {
                ssize_t n = recv(p[i].fd, zeros, sizeof zeros, MSG_DONTWAIT);
                if (n > 0) got[i] += n;
                else if (n == 0) p[i].fd = -1;
            }
    for (int i = 0; i < count; i++) printf("%lld\n", got[i]);
    return 0;
}

struct line { int fd; char *ring; size_t at; };

static _Noreturn void read_lines(size_t capacity, size_t most, const char *prefix) {
    int ep = epoll_create1(0), lines = 0;
    char path[200];
    static struct epoll_event events[64];
    setvbuf(stdin, NULL, _IONBF, 0);
    while (fgets(path, sizeof path, stdin) && path[0] != '\n') {
        char name[300];
        struct line *l = calloc(1, sizeof *l);
        path[strcspn(path, "\n")] = 0;
        if (!strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm", 8)) {
            l->fd = open(path, O_RDWR | O_NOCTTY);
        } else {
            struct sockaddr_un a = address(path);
            l->fd = socket(AF_UNIX, SOCK_STREAM, 0);
            if (connect(l->fd, (struct sockaddr *)&a, sizeof a)) die(path);
        }
        fcntl(l->fd, F_SETFL, O_NONBLOCK);
        snprintf(name, sizeof name, "%s.%d", prefix, lines++);
        int file = open(name, O_RDWR | O_CREAT, 0600);
        if (ftruncate(file, capacity + 8)) die(name);
        l->ring = mmap(NULL, capacity + 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        memset(l->ring, 0, capacity);
        close(file);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = l};
        epoll_ctl(ep, EPOLL_CTL_ADD, l->fd, &e);
    }
    puts("ready");
    for (;;) {
        int n = epoll_wait(ep, events, 64, -1);
        for (int i = 0; i < n; i++) {
            struct line *l = events[i].data.ptr;
            size_t room = capacity - l->at;
            ssize_t got = read(l->fd, l->ring + l->at, room < most ? room : most);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                epoll_ctl(ep, EPOLL_CTL_DEL, l->fd, NULL);
                continue;
            }
            *(long long *)(l->ring + capacity) += got;
            l->at = (l->at + got) % capacity;
        }
    }
}

int main(int argc, char **argv) {
    struct rlimit files = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOLBF, 0);
    memset(zeros, 'x', sizeof zeros);
    for (size_t i = 79; i < sizeof zeros; i += 80) zeros[i] = '\n';
    if (argc == 4 && !strcmp(argv[1], "flood")) {
        int listener = listen_on(argv[2]);
        puts("listening");
        int fd = accept(listener, NULL, NULL);
        puts("connected");
        return flood(fd, atol(argv[3]));
    }
    if (argc == 3 && !strcmp(argv[1], "pty")) {
        int fd = new_pty();
        puts(ptsname(fd));
        return flood(fd, atol(argv[2]));
    }
    if (argc == 6 && !strcmp(argv[1], "trickle"))
        return trickle(argv[2], atoi(argv[3]), atol(argv[4]), atoi(argv[5]));
    if (argc >= 4 && !strcmp(argv[1], "drain")) return drain(atof(argv[2]), argc - 3, argv + 3);
    if (argc == 5 && !strcmp(argv[1], "read")) read_lines(atol(argv[2]), atol(argv[3]), argv[4]);
    fputs("see the top of console_load.c\n", stderr);
    return 2;
}
