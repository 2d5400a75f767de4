/* attack NAME [WORD...]: does one of the attacks. */
#include "attack.h"

#define ATTACKS(X) \
    X(gulp) X(drip) X(child) X(files_in_memory) X(lock_memory) X(system_v) X(pipes) X(sockets) X(descriptors) \
    X(memory_files) X(page_tables) X(cached_names) X(tcp) X(udp) X(uncharged) \
    X(forks) X(endless_forks) X(threads) X(deaf) X(frozen) X(daemons) X(respawn) X(zombies) X(kill_init) \
    X(end_by_init) X(kill_all) X(look_into_init) X(limit_init) X(starve_init) X(priority) \
    X(kernel) X(mounts) X(namespaces) X(sockets_raw) X(identity) X(settings) X(setuid_program) X(reach) X(traces) \
    X(output_replaced) X(grow) X(reserve) X(attributes) X(sparse) X(fill) X(names) X(elsewhere) X(progress) \
    X(flood) X(blanks) X(forge) X(close_all) X(count_quotas) X(take_quotas) X(neighbour)

#define DECLARE(name) int name(int count, char **words);
ATTACKS(DECLARE)

void told(const char *what, long result)
{
    printf("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "given");
    fflush(stdout);
}

double seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void rest(double span)
{
    double end = seconds() + span;
    while (seconds() < end)
        usleep(10000);
}

void ignore_all(void)
{
    for (int number = 1; number <= SIGRTMAX; number++)
        signal(number, SIG_IGN);
}

int main(int count, char **words)
{
#define CALL(name) \
    if (count > 1 && strcmp(words[1], #name) == 0) \
        return name(count - 2, words + 2);
    ATTACKS(CALL)
    fprintf(stderr, "no such attack\n");
    return 64;
}
