/* Files: what /job/output may become, and every way to fill a disk. */
#include "attack.h"
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define OUTPUT "/job/output"
#define PROGRESS "/job/progress"

/* Whatever it tries, the file stays the one that the daemon reads. */
int output_replaced(int count, char **words)
{
    int fd;
    (void)count, (void)words;
    told("unlink", unlink(OUTPUT));
    told("symlink", symlink("/etc/passwd", "/job/link"));
    told("symlink in its place", symlink("/etc/passwd", OUTPUT));
    fd = creat("/work/other", 0600);
    told("rename", rename("/work/other", OUTPUT));
    told("move away", rename(OUTPUT, "/work/output"));
    told("hard link", link("/etc/passwd", "/job/hard"));
    told("hard link to it", link(OUTPUT, "/work/hard"));
    told("fifo", mkfifo("/job/fifo", 0600));
    told("folder", mkdir("/job/folder", 0700));
    told("mode", chmod(OUTPUT, 0));
    told("owner", chown(OUTPUT, 65534, 65534));
    fd = open(OUTPUT, O_RDWR);
    told("lease", fcntl(fd, F_SETLEASE, F_RDLCK));
    told("lock", flock(fd, LOCK_EX));
    write(fd, "{\"mine\": true}", 14);
    return 0;
}

static char block[64 * KIB];

static void write_until_full(const char *path)
{
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    while (write(fd, block, sizeof block) > 0)
        ;
    printf("%s: %s\n", path, strerrorname_np(errno));
    fflush(stdout);
    close(fd);
}

/* grow PATH: a file that never ends, outside of the container. */
int grow(int count, char **words)
{
    if (count < 1)
        return 64;
    for (;;)
        write_until_full(words[0]);
}

/* reserve: all the room that a file may have, at once, in either file that is outside of the container. */
int reserve(int count, char **words)
{
    struct rlimit most;
    (void)count, (void)words;
    getrlimit(RLIMIT_FSIZE, &most);
    told(OUTPUT, fallocate(open(OUTPUT, O_RDWR), 0, 0, (off_t)most.rlim_cur));
    told(PROGRESS, fallocate(open(PROGRESS, O_RDWR), 0, 0, (off_t)most.rlim_cur));
    rest(60);
    return 0;
}

/* attributes: 8 MiB in names beside what a file holds, which no limit on its length counts. */
int attributes(int count, char **words)
{
    int fd = open(OUTPUT, O_RDWR), set = 0;
    long result = 0;
    (void)count, (void)words;
    while (set < 128 && result == 0) {
        char name[32];
        snprintf(name, sizeof name, "user.%d", set++);
        result = fsetxattr(fd, name, block, sizeof block, 0);
    }
    told("attributes", result);
    return 0;
}

int sparse(int count, char **words)
{
    int fd = creat("/work/sparse", 0600);
    (void)count, (void)words;
    told("a terabyte of nothing", ftruncate(fd, 1LL << 40));
    told("a terabyte of room", fallocate(fd, 0, 0, 1LL << 40));
    return 1;
}

int fill(int count, char **words)
{
    (void)count, (void)words;
    write_until_full("/work/a");
    write_until_full("/tmp/a");
    write_until_full("/dev/shm/a");
    return 1;
}

/* names FOLDER: empty files, with names as odd as they come. */
int names(int count, char **words)
{
    char path[4096];
    int made = 0, fd;
    if (count < 1)
        return 64;
    for (;; made++) {
        snprintf(path, sizeof path, "%s/\n\t\\\"\xff%0200d", words[0], made);
        if ((fd = creat(path, 0)) < 0)
            break;
        close(fd);
    }
    printf("%d, then %s\n", made, strerrorname_np(errno));
    return 1;
}

/* Places that are not the job's, and programs that would have another's rights. */
int elsewhere(int count, char **words)
{
    static const char *const paths[] = {
        "/x", "/bin/x", "/etc/x", "/job/x", "/dev/x", "/proc/x", "/sys/x", "/.runner-init", "/bin/busybox", "/job/payload",
    };
    (void)count, (void)words;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        told(paths[i], open(paths[i], O_CREAT | O_WRONLY, 0600));
    told("a setuid file", fchmod(creat("/work/setuid", 0700), 04777));
    return 0;
}

/* Something new to tell at each moment, none of it of any use. */
int progress(int count, char **words)
{
    static char deep[4000];
    int fd = open("/job/progress", O_WRONLY);
    (void)count, (void)words;
    memset(deep, '[', sizeof deep);
    for (double end = seconds() + 2.5; seconds() < end;) {
        for (uint32_t i = 0; i < 1000; i++) {
            pwrite(fd, &i, sizeof i, 0);
            pwrite(fd, "\xff\xfe\0\x1b[2J", 7, sizeof i);
        }
        pwrite(fd, deep, sizeof deep, 0);
        ftruncate(fd, MIB);
        ftruncate(fd, 0);
    }
    pwrite(fd, deep, sizeof deep, 0);
    return 0;
}
