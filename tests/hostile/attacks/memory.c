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

static struct sockaddr_in here = {.sin_family = AF_INET};
static socklen_t length = sizeof here;

static int loopback(int type)
{
    int fd = socket(AF_INET, type, 0);
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    here.sin_port = 0;
    bind(fd, (struct sockaddr *)&here, length);
    getsockname(fd, (struct sockaddr *)&here, &length);
    return fd;
}

static void tell_held(long bytes)
{
    printf("%s\n", bytes < 64 * MIB ? "little" : "much");
    fprintf(stderr, "%ld MiB\n", bytes / MIB);
}

/* Buffers of connections to itself: they may take megabytes each. */
int tcp(int count, char **words)
{
    static char block[64 * KIB];
    long bytes = 0;
    int server = loopback(SOCK_STREAM);
    (void)count, (void)words;
    listen(server, 4096);
    for (int i = 0; i < 100; i++) {
        int large = 64 * MIB, client = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(client, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
        connect(client, (struct sockaddr *)&here, length);
        fcntl(client, F_SETFL, O_NONBLOCK);
        for (ssize_t sent; (sent = write(client, block, sizeof block)) > 0;)
            bytes += sent;
    }
    tell_held(bytes);
    return 0;
}

int udp(int count, char **words)
{
    static char block[32 * KIB];
    static int fds[200];
    long bytes = 0;
    (void)count, (void)words;
    for (int i = 0; i < 200; i++) {
        int large = 64 * MIB;
        fds[i] = loopback(SOCK_DGRAM);
        setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
        for (int n = 0; n < 200; n++)
            sendto(fds[i], block, sizeof block, MSG_DONTWAIT, (struct sockaddr *)&here, length);
    }
    for (int i = 0; i < 200; i++)
        for (ssize_t got; (got = recv(fds[i], block, sizeof block, MSG_DONTWAIT)) > 0;)
            bytes += got;
    tell_held(bytes);
    return 0;
}

static long old_socket(int family, int type, int protocol) /* as a program of 32 bits would call it */
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(359), "b"(family), "c"(type), "d"(protocol) : "memory");
    errno = (int)-result;
    return (int)result < 0 ? -1 : result;
#else
    return socket(family, type, protocol);
#endif
}

/* Kinds of sockets whose buffers count as nobody's memory. */
int uncharged(int count, char **words)
{
    char parameters[256] = {0};
    (void)count, (void)words;
    told("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    told("netlink, user to user", socket(AF_NETLINK, SOCK_RAW, 2));
    told("netlink, 32 bits", old_socket(AF_NETLINK, SOCK_RAW, 0));
    told("ping", socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
    told("ping 6", socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6));
    told("the hypervisor", socket(AF_VSOCK, SOCK_STREAM, 0));
    told("ciphers", socket(AF_ALG, SOCK_SEQPACKET, 0));
    told("io_uring", syscall(SYS_io_uring_setup, 8, parameters));
    told("tcp", socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP));
    told("udp", socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP));
    told("unix", socket(AF_UNIX, SOCK_SEQPACKET, 0));
    return 0;
}
