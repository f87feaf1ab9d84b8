/* measure [-m] [-t SECONDS] [-k BYTES] [-o FILE] -- COMMAND...: starts COMMAND with its stdout on a pipe and its stdin from /dev/null, and
 * prints one JSON line of what it cost:
 *   first_ns   from just before fork to the first byte on the pipe (null: none came)
 *   end_ns     from just before fork to the end of the process
 *   status     exit status (128 + signal for a signal), timeout: true where -t ended it
 *   maxrss     peak resident bytes (rusage of wait4), guest RAM that was touched included
 * With -m, /proc/PID/status is also read about every 200 us (this costs time: take times from runs without it):
 *   private    peak of RssAnon + RssFile in bytes: everything resident except shared memory
 *   shared     peak of RssShmem in bytes: guest RAM that was touched, where the guest RAM is a memfd
 * -k ends COMMAND once so many bytes came over the pipe: for a VMM that stays when its guest has halted.
 * -o keeps what came over the pipe. A program of its own, not Python: so that neither start nor clock depends on an
 * interpreter, and ru_maxrss starts from this small process (a child's peak counts the memory of what it was forked from). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((noreturn)) static void die(const char *what)
{
    fprintf(stderr, "measure: %s: %s\n", what, strerror(errno));
    exit(125);
}

static uint64_t field(const char *status, const char *name)
{
    const char *line = strstr(status, name);
    return line ? strtoull(line + strlen(name), NULL, 10) * 1024 : 0;
}

struct peaks {
    uint64_t private, shared, samples;
};

static void sample(pid_t pid, struct peaks *peaks)
{
    char path[40], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return;
    text[n] = 0;
    uint64_t private = field(text, "RssAnon:") + field(text, "RssFile:"), shared = field(text, "RssShmem:");
    if (private > peaks->private)
        peaks->private = private;
    if (shared > peaks->shared)
        peaks->shared = shared;
    peaks->samples++;
}

static pid_t start(char **command, int *read_end)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("pipe");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        int null = open("/dev/null", O_RDONLY);
        dup2(null, STDIN_FILENO);
        dup2(ends[1], STDOUT_FILENO);
        execvp(command[0], command);
        fprintf(stderr, "measure: %s: %s\n", command[0], strerror(errno));
        _exit(127);
    }
    close(ends[1]);
    *read_end = ends[0];
    return pid;
}

int main(int argc, char **argv)
{
    int memory = 0, option, keep = -1, timed_out = 0, ended = 0;
    uint64_t limit = 30, enough = 0, bytes = 0;
    while ((option = getopt(argc, argv, "+mt:k:o:")) != -1) {
        if (option == 'm')
            memory = 1;
        else if (option == 't')
            limit = strtoull(optarg, NULL, 10);
        else if (option == 'k')
            enough = strtoull(optarg, NULL, 10);
        else if (option == 'o')
            keep = open(optarg, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        else
            return 125;
    }
    if (optind >= argc) {
        fprintf(stderr, "usage: measure [-m] [-t SECONDS] [-k BYTES] [-o FILE] -- COMMAND...\n");
        return 125;
    }

    uint64_t begin = now_ns(), first = 0, last = 0;
    int out;
    pid_t pid = start(argv + optind, &out);
    int exited = (int)syscall(SYS_pidfd_open, pid, 0);
    if (exited < 0)
        die("pidfd_open");
    struct peaks peaks = {0};
    struct timespec period = {.tv_nsec = 200000}, second = {.tv_sec = 1};
    while (!ended) {
        struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = exited, .events = POLLIN}};
        if (ppoll(fds, 2, memory ? &period : &second, NULL) < 0)
            die("poll");
        if (memory)
            sample(pid, &peaks);
        if (fds[0].revents) {
            char buffer[4096];
            ssize_t n = read(out, buffer, sizeof buffer);
            if (n > 0 && !first)
                first = now_ns() - begin;
            if (n > 0 && keep >= 0 && write(keep, buffer, (size_t)n) != n)
                die("write");
            if (n > 0 && enough && (bytes += (uint64_t)n) >= enough)
                kill(pid, SIGKILL);
            if (n == 0)
                out = -1; /* poll ignores a negative fd */
        } else if (fds[1].revents) {
            last = now_ns() - begin;
            ended = 1;
        }
        if (!ended && !timed_out && now_ns() - begin > limit * 1000000000u) {
            timed_out = 1;
            kill(pid, SIGKILL);
        }
    }
    int status;
    struct rusage usage;
    if (wait4(pid, &status, 0, &usage) < 0)
        die("wait4");
    if (first)
        printf("{\"first_ns\": %" PRIu64, first);
    else
        printf("{\"first_ns\": null");
    printf(", \"end_ns\": %" PRIu64 ", \"status\": %d, \"timeout\": %s, \"maxrss\": %ld", last,
           WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), timed_out ? "true" : "false",
           usage.ru_maxrss * 1024);
    if (memory)
        printf(", \"private\": %" PRIu64 ", \"shared\": %" PRIu64 ", \"samples\": %" PRIu64, peaks.private, peaks.shared,
               peaks.samples);
    puts("}");
    return 0;
}
