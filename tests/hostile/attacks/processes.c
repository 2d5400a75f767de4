/* Processes: too many of them, such as do not want to end, and such as turn on the init. */
#include "attack.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

static _Noreturn void fork_for_ever(void)
{
    ignore_all();
    for (;;)
        if (fork() < 0)
            sched_yield();
}

int forks(int count, char **words)
{
    int failed = 0;
    (void)count, (void)words;
    for (double end = seconds() + 1; failed == 0 || seconds() < end;) {
        pid_t pid = fork();
        if (pid == 0)
            fork_for_ever();
        if (pid < 0)
            failed = errno;
    }
    printf("%s\n", strerrorname_np(failed));
    return 0;
}

int endless_forks(int count, char **words)
{
    (void)count, (void)words;
    fork_for_ever();
}

static void *wait_in_thread(void *nothing)
{
    rest(60);
    return nothing;
}

int threads(int count, char **words)
{
    pthread_t thread;
    pthread_attr_t small;
    int started = 0, failed;
    (void)count, (void)words;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    while ((failed = pthread_create(&thread, &small, wait_in_thread, 0)) == 0)
        started++;
    printf("%d, then %s\n", started, strerrorname_np(failed));
    return 0;
}

int deaf(int count, char **words)
{
    (void)count, (void)words;
    ignore_all();
    for (;;)
        pause();
}

int frozen(int count, char **words)
{
    (void)count, (void)words;
    kill(0, SIGSTOP);
    return 0;
}

int daemons(int count, char **words)
{
    (void)count, (void)words;
    for (int i = 0; i < 20; i++)
        if (fork() == 0) {
            setsid();
            if (fork() > 0)
                _exit(0);
            ignore_all();
            for (;;)
                rest(1);
        }
    while (wait(0) > 0)
        ;
    return 0;
}

static _Noreturn void run_away(void)
{
    for (;;) {
        if (fork() > 0)
            _exit(0);
        setsid();
    }
}

/* Each process lives just long enough to start the next one, in a session of its own. */
int respawn(int count, char **words)
{
    (void)count, (void)words;
    for (int i = 0; i < 8; i++)
        if (fork() == 0)
            run_away();
    rest(1);
    return 0;
}

int zombies(int count, char **words)
{
    int born = 0;
    (void)count, (void)words;
    for (int i = 0; i < 3000; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        born += pid > 0;
    }
    printf("%d\n", born);
    return 0;
}

/* The signals that the init passes on or obeys are another attack. */
int kill_init(int count, char **words)
{
    static const int signals[] = {SIGKILL, SIGSTOP, SIGTSTP, SIGSEGV, SIGABRT, SIGALRM, SIGPIPE, SIGCHLD, SIGXCPU};
    (void)count, (void)words;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        for (int times = 0; times < 100; times++)
            if (kill(getppid(), signals[i]) < 0)
                return 1;
    rest(0.3);
    puts("still here");
    return 0;
}

int end_by_init(int count, char **words)
{
    ignore_all();
    kill(1, count > 0 ? atoi(words[0]) : SIGTERM);
    rest(60);
    return 0;
}

int kill_all(int count, char **words)
{
    (void)count, (void)words;
    if (fork() == 0) {
        kill(-1, SIGKILL);
        rest(60);
    }
    rest(60);
    return 0;
}

static void try_open(const char *path, int flags)
{
    int fd = open(path, flags);
    told(path, fd);
    if (fd >= 0)
        close(fd);
}

int look_into_init(int count, char **words)
{
    char byte, link[64];
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    int pidfd = (int)syscall(SYS_pidfd_open, 1, 0);
    (void)count, (void)words;
    told("attach", ptrace(PTRACE_ATTACH, 1, 0, 0));
    told("seize", ptrace(PTRACE_SEIZE, 1, 0, 0));
    told("read", process_vm_readv(1, &here, 1, &there, 1, 0));
    told("write", process_vm_writev(1, &here, 1, &there, 1, 0));
    told("take a descriptor", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
    try_open("/proc/1/mem", O_RDWR);
    try_open("/proc/1/environ", O_RDONLY);
    try_open("/proc/1/maps", O_RDONLY);
    try_open("/proc/1/fd/0", O_RDONLY);
    try_open("/proc/1/fd", O_RDONLY | O_DIRECTORY);
    try_open("/proc/1/root/etc", O_RDONLY);
    told("/proc/1/cwd", readlink("/proc/1/cwd", link, sizeof link));
    return 0;
}

/* The kernel lets processes of one user set each other's limits. */
int limit_init(int count, char **words)
{
    static const struct rlimit none = {0, 0};
    (void)count, (void)words;
    told("descriptors", prlimit(1, RLIMIT_NOFILE, &none, 0));
    told("file size", prlimit(1, RLIMIT_FSIZE, &none, 0));
    told("signals", prlimit(1, RLIMIT_SIGPENDING, &none, 0));
    told("memory", prlimit(1, RLIMIT_AS, &none, 0));
    told("stack", prlimit(1, RLIMIT_STACK, &none, 0));
    told("processes", prlimit(1, RLIMIT_NPROC, &none, 0));
    for (double end = seconds() + 0.3; seconds() < end;)
        ;
    return 0;
}

/* The init gets what nobody else wants, and there is always somebody who wants it. */
int starve_init(int count, char **words)
{
    static const struct sched_param zero;
    (void)count, (void)words;
    ignore_all();
    sched_setscheduler(1, SCHED_IDLE, &zero);
    setpriority(PRIO_PROCESS, 1, 19);
    for (int i = 0; i < 200; i++)
        if (fork() == 0)
            for (;;)
                ;
    for (;;)
        ;
}

int priority(int count, char **words)
{
    static const struct sched_param first = {.sched_priority = 1};
    static const struct rlimit much = {1 << 20, 1 << 20};
    (void)count, (void)words;
    told("nice", setpriority(PRIO_PROCESS, 0, -20));
    told("real time", sched_setscheduler(0, SCHED_FIFO, &first));
    told("more descriptors", setrlimit(RLIMIT_NOFILE, &much));
    told("longer files", setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}));
    told("message queues", setrlimit(RLIMIT_MSGQUEUE, &much));
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    told("spared by the OOM killer", write(fd, "-1000", 5));
    return 0;
}
