/* Memory, by every way that leads to it. */
#include "attack.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <netinet/in.h>

static const size_t MUCH = (size_t)1024 * MIB;

static void *space(size_t size)
{
    return mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

int gulp(int count, char **words)
{
    (void)count, (void)words;
    memset(space(MUCH), 1, MUCH);
    return 0;
}

int drip(int count, char **words)
{
    (void)count, (void)words;
    for (size_t taken = 0; taken < MUCH; taken += 256 * KIB) {
        memset(space(256 * KIB), 1, 256 * KIB);
        usleep(5000);
    }
    return 0;
}

int child(int count, char **words)
{
    int status;
    if (fork() == 0)
        return gulp(count, words);
    wait(&status);
    printf("the child died of %d\n", WTERMSIG(status));
    return 0;
}

int files_in_memory(int count, char **words)
{
    static const char *const names[] = {"/work/a", "/tmp/a", "/dev/shm/a"};
    static char block[MIB];
    (void)count, (void)words;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int fd = open(names[i], O_CREAT | O_WRONLY, 0600);
        while (write(fd, block, sizeof block) > 0)
            ;
    }
    return 1;
}

int lock_memory(int count, char **words)
{
    void *memory = space(64 * MIB);
    (void)count, (void)words;
    told("mlock", mlock(memory, 64 * MIB));
    told("mlockall", mlockall(MCL_CURRENT | MCL_FUTURE));
    return 0;
}

int system_v(int count, char **words)
{
    (void)count, (void)words;
    for (;;) {
        void *memory = shmat(shmget(IPC_PRIVATE, MIB, IPC_CREAT | 0600), 0, 0);
        if (memory == (void *)-1)
            return 1;
        memset(memory, 1, MIB);
    }
}

/* Does the same in one process after the other, for each may have only so many descriptors. */
static int in_many(int (*each)(void))
{
    for (int process = 0; process < 200; process++)
        if (fork() == 0) {
            int result = each();
            rest(60);
            return result;
        }
    rest(60);
    return 0;
}

static void stuff(int fd)
{
    static char block[64 * KIB];
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (write(fd, block, sizeof block) > 0)
        ;
}

static int many_pipes(void)
{
    int ends[2];
    while (pipe(ends) == 0) {
        fcntl(ends[1], F_SETPIPE_SZ, MIB);
        stuff(ends[1]);
    }
    return 0;
}

int pipes(int count, char **words)
{
    (void)count, (void)words;
    return in_many(many_pipes);
}

static int many_sockets(void)
{
    int ends[2];
    while (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0) {
        stuff(ends[0]);
        stuff(ends[1]);
    }
    return 0;
}

int sockets(int count, char **words)
{
    (void)count, (void)words;
    return in_many(many_sockets);
}

static int many_descriptors(void)
{
    while (eventfd(0, 0) >= 0)
        ;
    return 0;
}

int descriptors(int count, char **words)
{
    (void)count, (void)words;
    return in_many(many_descriptors);
}

static int many_memory_files(void)
{
    static char block[MIB];
    int fd;
    while ((fd = memfd_create("x", 0)) >= 0)
        if (write(fd, block, sizeof block) < 0)
            break;
    return 0;
}

int memory_files(int count, char **words)
{
    (void)count, (void)words;
    return in_many(many_memory_files);
}

/* One page in each 2 MiB needs a page of tables; reading it gives the page of zeros, which costs nothing itself. */
int page_tables(int count, char **words)
{
    const size_t size = (size_t)1 << 36;
    volatile char *memory = space(size);
    char sum = 0;
    (void)count, (void)words;
    madvise((void *)memory, size, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < size; at += 2 * MIB)
        sum += memory[at];
    return sum;
}

/* The kernel remembers names that are not there, too. */
int cached_names(int count, char **words)
{
    struct stat status;
    char name[256];
    (void)count, (void)words;
    for (int i = 0; i < 60000; i++) {
        snprintf(name, sizeof name, "/%0200d", i);
        stat(name, &status);
    }
    return 0;
}

/* Buffers of connections to itself: each takes megabytes, and not everywhere do they count as the job's memory. */
int tcp(int count, char **words)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int large = 64 * MIB, server = socket(AF_INET, SOCK_STREAM, 0);
    (void)count, (void)words;
    bind(server, (struct sockaddr *)&here, length);
    listen(server, 4096);
    getsockname(server, (struct sockaddr *)&here, &length);
    for (int i = 0; i < 200; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(client, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
        if (connect(client, (struct sockaddr *)&here, length) < 0)
            break;
        int accepted = accept(server, 0, 0);
        stuff(client);
        stuff(accepted);
    }
    int fd = open("/proc/net/sockstat", O_RDONLY);
    char text[4096];
    ssize_t size = read(fd, text, sizeof text);
    if (size > 0)
        write(2, text, (size_t)size);
    return 0;
}
