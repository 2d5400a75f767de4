/* What only root may ask of the kernel, asked for. */
#include "attack.h"
#include <arpa/inet.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>

int kernel(int count, char **words)
{
    struct perf_event_attr event = {.type = PERF_TYPE_HARDWARE, .size = sizeof event};
    struct timeval day = {86400, 0};
    struct timespec time = {86400, 0};
    char text[4096];
    (void)count, (void)words;
    told("read the kernel's log", klogctl(3, text, sizeof text));
    told("clear the kernel's log", klogctl(5, 0, 0));
    told("set the time", settimeofday(&day, 0));
    told("set the clock", clock_settime(CLOCK_REALTIME, &time));
    told("load a module", syscall(SYS_init_module, text, sizeof text, ""));
    told("load a module's file", syscall(SYS_finit_module, 0, "", 0));
    told("remove a module", syscall(SYS_delete_module, "ext4", O_NONBLOCK));
    told("load a program", syscall(SYS_bpf, 5, text, 128));
    told("count events", syscall(SYS_perf_event_open, &event, -1, 0, -1, 0));
    told("add a key", syscall(SYS_add_key, "user", "x", "x", 1, KEY_SPEC_USER_KEYRING));
    told("ask for a key", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
    told("load a kernel", syscall(SYS_kexec_load, 0, 0, 0, 0));
    told("reboot", syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, 0));
    told("name the host", sethostname("mine", 4));
    told("name the domain", setdomainname("mine", 4));
    told("swap on", swapon("/work/swap", 0));
    told("swap off", swapoff("/work/swap"));
    told("count processes", acct("/work/acct"));
    told("catch page faults", syscall(SYS_userfaultfd, 0));
    told("open by handle", syscall(SYS_open_by_handle_at, AT_FDCWD, text, O_RDONLY));
    told("watch all files", syscall(SYS_fanotify_init, 0, O_RDONLY));
    told("log out the terminal", vhangup());
#ifdef SYS_iopl
    told("reach ports", syscall(SYS_iopl, 3));
#else
    errno = EPERM; /* there are none */
    told("reach ports", -1);
#endif
    return 0;
}

int mounts(int count, char **words)
{
    (void)count, (void)words;
    told("block device", mknod("/work/disk", S_IFBLK | 0600, makedev(8, 0)));
    told("character device", mknod("/work/memory", S_IFCHR | 0600, makedev(1, 1)));
    told("mount", mount("none", "/work", "tmpfs", 0, 0));
    told("bind", mount("/", "/work", 0, MS_BIND, 0));
    told("remount", mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0));
    told("unmount", umount2("/work", MNT_DETACH));
    told("pivot_root", syscall(SYS_pivot_root, "/work", "/work"));
    told("chroot", chroot("/work"));
    told("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    told("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    return 0;
}

int namespaces(int count, char **words)
{
    int other = open("/proc/self/ns/net", O_RDONLY), init = open("/proc/1/ns/net", O_RDONLY);
    (void)count, (void)words;
    told("user", unshare(CLONE_NEWUSER));
    told("network", unshare(CLONE_NEWNET));
    told("mounts", unshare(CLONE_NEWNS));
    told("processes", unshare(CLONE_NEWPID));
    told("control groups", unshare(CLONE_NEWCGROUP));
    told("clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    told("clone3", syscall(SYS_clone3, 0, 0));
    told("enter", setns(other, CLONE_NEWNET));
    told("the init's", init);
    return 0;
}

int sockets_raw(int count, char **words)
{
    (void)count, (void)words;
    told("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    told("raw 6", socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
    told("packet", socket(AF_PACKET, SOCK_RAW, 0));
    told("packet, cooked", socket(AF_PACKET, SOCK_DGRAM, 0));
    return 0;
}

int identity(int count, char **words)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct all[2] = {{~0U, ~0U, ~0U}, {~0U, ~0U, ~0U}};
    gid_t group = 0;
    (void)count, (void)words;
    told("uid 0", setuid(0));
    told("gid 0", setgid(0));
    told("groups", setgroups(1, &group));
    told("all capabilities", syscall(SYS_capset, &header, all));
    told("a file for root", chown("/work", 0, 0));
    return 0;
}

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    told(path, fd < 0 ? fd : write(fd, text, strlen(text)));
}

int settings(int count, char **words)
{
    (void)count, (void)words;
    put("/proc/sys/kernel/core_pattern", "|/work/x");
    put("/proc/sys/vm/overcommit_memory", "1");
    put("/proc/sys/net/ipv4/ip_forward", "1");
    put("/proc/sysrq-trigger", "b");
    put("/sys/kernel/mm/transparent_hugepage/enabled", "never");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1");
    put("/sys/fs/cgroup/memory.max", "max");
    put("/sys/fs/cgroup/cgroup.procs", "0");
    put("/proc/1/oom_score_adj", "1000");
    told("/proc/kcore", open("/proc/kcore", O_RDONLY) < 0 ? -1 : read(open("/proc/kcore", O_RDONLY), (char[1]){0}, 1) - 1);
    told("/dev/mem", open("/dev/mem", O_RDONLY));
    told("/dev/kmsg", open("/dev/kmsg", O_RDWR));
    return 0;
}

/* Run as the image's program that is root's and setuid. */
int setuid_program(int count, char **words)
{
    uid_t real, effective, saved;
    if (count == 0) {
        execl("/bin/attack-setuid", "attack-setuid", "setuid_program", "again", NULL);
        return 1;
    }
    (void)words;
    getresuid(&real, &effective, &saved);
    printf("%d %d %d\n", real == effective, effective == saved, effective != 0);
    told("root's file", open("/etc/shadow", O_RDONLY));
    return 0;
}

static void reach_tcp(const char *what, const char *address, int port)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, address, &there.sin_addr);
    told(what, connect(fd, (struct sockaddr *)&there, sizeof there));
    close(fd);
}

static void reach_unix(const char *what, const char *path, size_t length)
{
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memcpy(there.sun_path, path, length);
    told(what, connect(fd, (struct sockaddr *)&there, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)));
    close(fd);
}

static int lines_of(const char *path)
{
    FILE *file = fopen(path, "r");
    int lines = 0, byte;
    while (file && (byte = fgetc(file)) != EOF)
        lines += byte == '\n';
    return lines;
}

/* reach PORT SOCKET: a port of the host's loopback where somebody listens, and the engine's socket. */
int reach(int count, char **words)
{
    if (count < 2)
        return 64;
    reach_tcp("the host's loopback", "127.0.0.1", atoi(words[0]));
    reach_tcp("the metadata address", "169.254.169.254", 80);
    reach_tcp("the engine's bridge", "172.17.0.1", atoi(words[0]));
    reach_tcp("a private address", "10.0.0.1", 80);
    reach_tcp("the world", "192.0.2.1", 80);
    reach_unix("the engine", words[1], strlen(words[1]));
    reach_unix("the usual engine", "/var/run/docker.sock", sizeof "/var/run/docker.sock");
    reach_unix("a name that shims had", "\0/containerd-shim/x.sock", sizeof "\0/containerd-shim/x.sock" - 1);
    printf("sockets: %d, routes: %d\n", lines_of("/proc/net/unix") - 1, lines_of("/proc/net/route") - 1);
    return 0;
}

static int listen_at(int port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    told("bind", bind(fd, (struct sockaddr *)&here, sizeof here));
    told("listen", listen(fd, 4));
    return fd;
}

/* The end that closes first is remembered by the kernel, for a minute. */
static void leave_time_wait(int listener, int port)
{
    char byte;
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int ours = socket(AF_INET, SOCK_STREAM, 0), theirs;
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    told("connect", connect(ours, (struct sockaddr *)&there, sizeof there));
    theirs = accept(listener, 0, 0);
    write(ours, "x", 1);
    read(theirs, &byte, 1);
    close(ours);
    read(theirs, &byte, 1);
    close(theirs);
    there.sin_port = htons(9);
    ours = socket(AF_INET, SOCK_DGRAM, 0);
    told("datagram", sendto(ours, "x", 1, 0, (struct sockaddr *)&there, sizeof there));
    close(ours);
}

static void ask_for_changes(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct ifreq interface = {.ifr_name = "lo:1"};
    struct rtentry route = {.rt_flags = RTF_UP, .rt_dev = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    inet_pton(AF_INET, "192.0.2.1", &address.sin_addr);
    memcpy(&interface.ifr_addr, &address, sizeof address);
    told("address", ioctl(fd, SIOCSIFADDR, &interface));
    memcpy(&route.rt_dst, &address, sizeof address);
    memcpy(&route.rt_genmask, &address, sizeof address);
    told("route", ioctl(fd, SIOCADDRT, &route));
    told("setting", open("/proc/sys/net/ipv4/ip_default_ttl", O_WRONLY));
    close(fd);
}

/* traces: leaves all that it can in its network namespace, and a daemon that keeps hold of it. */
int traces(int count, char **words)
{
    static const char name[] = "\0left behind";
    struct sockaddr_un here = {.sun_family = AF_UNIX};
    int listener = listen_at(7777), fd = socket(AF_UNIX, SOCK_STREAM, 0);
    (void)count, (void)words;
    memcpy(here.sun_path, name, sizeof name - 1);
    told("name", bind(fd, (struct sockaddr *)&here, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof name - 1)));
    listen(fd, 1);
    leave_time_wait(listener, 7777);
    ask_for_changes();
    fflush(stdout);
    if (fork() == 0) {
        setsid();
        ignore_all();
        if (fork() != 0)
            _exit(0);
        rest(600);
    }
    wait(0);
    return 0;
}
