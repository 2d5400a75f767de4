/* The neighbour: a fixed piece of work, in small rounds. Says how far it is, and whatever disturbs it. */
#include "attack.h"
#include <sys/resource.h>

static _Noreturn void disturbed(const char *what)
{
    dprintf(2, "%s: %s\n", what, strerrorname_np(errno));
    _exit(1);
}

static void signalled(int number)
{
    dprintf(2, "signal %d\n", number);
    _exit(2);
}

static double used(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static uint64_t compute(uint64_t value)
{
    for (int i = 0; i < 1000000; i++) {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    }
    return value;
}

static void keep(uint64_t value, const char *path)
{
    uint64_t block[512], again[512];
    for (int i = 0; i < 512; i++)
        block[i] = value + (uint64_t)i;
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    if (fd < 0)
        disturbed("open");
    if (write(fd, block, sizeof block) != sizeof block)
        disturbed("write");
    if (pread(fd, again, sizeof again, 0) != sizeof again || memcmp(block, again, sizeof block) != 0)
        disturbed("read");
    close(fd);
    if (unlink(path) < 0)
        disturbed("unlink");
}

int neighbour(int count, char **words)
{
    int rounds = count > 0 ? atoi(words[0]) : 100;
    double begin = seconds(), due = begin;
    uint64_t value = 88172645463325252ULL;
    for (int number = 1; number < SIGRTMIN; number++)
        if (number != SIGKILL && number != SIGSTOP)
            signal(number, signalled);
    for (int round = 1; round <= rounds; round++) {
        value = compute(value);
        keep(value, "/work/a");
        keep(value, "/tmp/a");
        keep(value, "/dev/shm/a");
        if (seconds() >= due) {
            printf("%d %.3f %.3f\n", round, used(), seconds() - begin);
            fflush(stdout);
            due = seconds() + 0.1;
        }
    }
    printf("done %016llx\n", (unsigned long long)value);
    return 0;
}
