/* What the kernel counts by user. Jobs of one user share it: whoever takes it all takes it from the others. */
#include "attack.h"
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>

enum { MOST = 16000 };

static int inotify(void)
{
    return inotify_init();
}

static int queue_signal(void)
{
    return sigqueue(getpid(), SIGRTMIN + 1, (union sigval){0});
}

/* A socket that is on its way through another one, and is never taken out. */
static int send_socket(void)
{
    static int ends[2] = {-1, -1}, sent;
    union { char bytes[CMSG_SPACE(sizeof(int) * 200)]; struct cmsghdr header; } control = {{0}};
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (sent++ % 100 == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0)
        return -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * 200);
    for (int i = 0; i < 200; i++)
        ((int *)CMSG_DATA(header))[i] = ends[0];
    return (int)sendmsg(ends[1], &message, MSG_DONTWAIT);
}

static int large_pipe(void)
{
    int ends[2];
    return pipe(ends) < 0 ? -1 : fcntl(ends[1], F_SETPIPE_SZ, 1024 * KIB) < 0 ? -1 : 0;
}

static int lock_shared(void)
{
    int id = shmget(IPC_PRIVATE, 64 * KIB, IPC_CREAT | 0600);
    return id < 0 ? -1 : shmctl(id, SHM_LOCK, 0);
}

static const struct {
    const char *name;
    int (*take)(void);
} quotas[] = {
    {"inotify instances", inotify}, {"queued signals", queue_signal}, {"sockets on their way", send_socket},
    {"pipe buffers", large_pipe}, {"locked shared memory", lock_shared},
};

static int take(int most)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    for (size_t i = 0; i < sizeof quotas / sizeof *quotas; i++) {
        int taken = 0;
        while (taken < most && quotas[i].take() >= 0)
            taken++;
        printf("%s: %d, then %s\n", quotas[i].name, taken, taken < most ? strerrorname_np(errno) : "enough");
    }
    fflush(stdout);
    return 0;
}

/* count_quotas N: takes as many of each. */
int count_quotas(int count, char **words)
{
    return take(count > 0 ? atoi(words[0]) : 10);
}

/* Takes all there are, and keeps them. */
int take_quotas(int count, char **words)
{
    take(1000000);
    puts("taken");
    fflush(stdout);
    rest(count > 0 ? atof(words[0]) : 60);
    return 0;
}
