/* What the attacks share. Each says on standard output what it was given, and main.c lists them all. */
#ifndef ATTACK_H
#define ATTACK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { KIB = 1024, MIB = 1024 * 1024 };

/* Writes "what: given", or the name of the error. */
void told(const char *what, long result);
/* Seconds on the monotonic clock. */
double seconds(void);
/* Sleeps that long, whatever signals come. */
void rest(double span);
/* Ignores every signal that can be ignored. */
void ignore_all(void);

#endif
