/* Preloaded into a real coordinator: records what it asks of the disk, in order, and makes chosen calls fail.
 *
 * It knows one store: the files NAME, NAME-wal, NAME-journal, NAME-sums, NAME-shm, NAME.lock and the folder they are in. Each call on them, and the
 * first bytes of each answer on a socket, is one record of the log (see trace.py), written while a mutex is held, after the call returned:
 * so "this write, then that sync, then that answer" stands there as it happened. What goes through the shared memory of -shm is not seen
 * and need not be: it is never on the disk that counts.
 *
 * Environment, read by shim_arm(): SHIM_STORE path of the store · SHIM_LOG file of records · SHIM_DATA 1 to keep the bytes of writes ·
 * SHIM_FAULT "kind,n,errno,once|on": the n-th call of that kind fails, or it and all later ones; errno 0 is a short write ·
 * SHIM_FULL a file: while it is there, calls that make a file larger get ENOSPC, or only those of the file it names by a letter (d, w, s). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
#define BODY_MAX (1 << 20)
enum { CREATE = 1, WRITE, SYNC, TRUNCATE, UNLINK, SEND, FAULT, OPEN, READ };
static const char *KINDS[] = {"", "create", "write", "sync", "truncate", "unlink", "send", "fault", "open", "read"};

struct record { uint8_t kind; char file; uint16_t port; uint32_t bytes; uint64_t at; };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char file_of[FDS]; /* d database, w wal, j journal, c page sums, s shm, l lock, f folder; 0 not ours */
static char store[PATH_MAX], folder[PATH_MAX], full[PATH_MAX];
static int log_fd = -1, with_data, fault_kind, fault_errno, fault_on, armed;
static long fault_n, seen[16];

#define REAL(type, name, ...) static type (*real_##name)(__VA_ARGS__)
REAL(int, open64, const char *, int, ...); REAL(int, openat64, int, const char *, int, ...); REAL(int, close, int);
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t); REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, pread64, int, void *, size_t, off64_t); REAL(int, ftruncate64, int, off64_t);
REAL(int, fsync, int); REAL(int, fdatasync, int); REAL(int, unlink, const char *);
REAL(ssize_t, send, int, const void *, size_t, int); REAL(ssize_t, sendmsg, int, const struct msghdr *, int);

static void find(void) {
#define FIND(name) *(void **)&real_##name = dlsym(RTLD_NEXT, #name)
    if (real_send) return;
    FIND(open64); FIND(openat64); FIND(close); FIND(pwrite64); FIND(write); FIND(pread64); FIND(ftruncate64);
    FIND(fsync); FIND(fdatasync); FIND(unlink); FIND(sendmsg); FIND(send);
}

static void put(uint8_t kind, char file, uint16_t port, uint64_t at, const void *data, size_t bytes) {
    static char whole[sizeof(struct record) + BODY_MAX];
    int kept = kind == SEND || kind == FAULT || (kind == WRITE && with_data);
    struct record head = {kind, file, port, (uint32_t)bytes, at};
    size_t size = sizeof head;
    if (log_fd < 0) return;
    if (bytes > BODY_MAX) abort();
    memcpy(whole, &head, sizeof head);
    if (kept) { memcpy(whole + size, data, bytes); size += bytes; }
    for (size_t done = 0; done < size;) { /* one write is the rule; a harness must not lose half a record to a signal */
        ssize_t n = real_write(log_fd, whole + done, size - done);
        if (n < 0 && errno != EINTR) abort();
        if (n > 0) done += (size_t)n;
    }
}

static char letter(const char *path) {
    size_t n = strlen(store);
    if (!armed || !n) return 0;
    if (strcmp(path, folder) == 0) return 'f';
    if (strncmp(path, store, n) != 0) return 0;
    path += n;
    return *path == 0 ? 'd' : !strcmp(path, "-wal") ? 'w' : !strcmp(path, "-journal") ? 'j'
        : !strcmp(path, "-sums") ? 'c' : !strcmp(path, "-shm") ? 's' : !strcmp(path, ".lock") ? 'l' : 0;
}

static char file(int fd) { return armed && fd >= 0 && fd < FDS ? file_of[fd] : 0; }

/* Called with the mutex held. 1: this call is the one that fails, errno is set. */
static int fails(int kind, char of) {
    if (of == 'f') return 0;
    seen[kind]++;
    if (kind != fault_kind || (fault_on ? seen[kind] < fault_n : seen[kind] != fault_n)) return 0;
    put(FAULT, of, 0, (uint64_t)seen[kind], KINDS[kind], strlen(KINDS[kind]));
    errno = fault_errno;
    return 1;
}

static int is_full(char of, int fd, off64_t end) {
    struct stat st;
    char which = 0;
    if (!full[0] || access(full, F_OK) != 0 || fstat(fd, &st) != 0 || end <= st.st_size) return 0;
    int named = real_open64(full, O_RDONLY | O_CLOEXEC);
    ssize_t n = named < 0 ? 0 : read(named, &which, 1);
    if (named >= 0) real_close(named);
    if (n == 1 && which != of) return 0;
    errno = ENOSPC;
    return 1;
}

static int opened(int fd, const char *path, int flags, int was_there) {
    if (fd < 0 || fd >= FDS) return fd;
    file_of[fd] = letter(path);
    if (file_of[fd] && (flags & O_CREAT) && !was_there) put(CREATE, file_of[fd], 0, 0, NULL, 0);
    if (file_of[fd] && (flags & O_TRUNC) && was_there) put(TRUNCATE, file_of[fd], 0, 0, NULL, 0);
    return fd;
}

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    find();
    int at = dir != AT_FDCWD && path[0] != '/';
    if (at || !letter(path)) {
        int fd = dir == AT_FDCWD ? real_open64(path, flags, mode) : real_openat64(dir, path, flags, mode);
        if (fd >= 0 && fd < FDS) file_of[fd] = 0;
        return fd;
    }
    pthread_mutex_lock(&mutex);
    int there = access(path, F_OK) == 0, fd = -1;
    if (!fails(OPEN, letter(path))) fd = opened(real_open64(path, flags, mode), path, flags, there);
    int kept = errno;
    pthread_mutex_unlock(&mutex);
    errno = kept;
    return fd;
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_any(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return open_any(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return open_any(dir, path, flags, mode); }

int close(int fd) {
    find();
    if (fd >= 0 && fd < FDS) file_of[fd] = 0;
    return real_close(fd);
}

static ssize_t write_any(int fd, const void *data, size_t bytes, off64_t at, int append) {
    char of = file(fd);
    ssize_t n = -1;
    pthread_mutex_lock(&mutex);
    if (append) at = lseek64(fd, 0, SEEK_CUR);
    int failing = fails(WRITE, of), short_write = failing && !fault_errno;
    if (short_write && bytes > 1) bytes /= 2; /* some progress: no disk takes nothing for ever without an error */
    if ((!failing || short_write) && !is_full(of, fd, at + (off64_t)bytes)) {
        n = append ? real_write(fd, data, bytes) : real_pwrite64(fd, data, bytes, at);
        if (n > 0) put(WRITE, of, 0, (uint64_t)at, data, (size_t)n);
    }
    int kept = errno;
    pthread_mutex_unlock(&mutex);
    errno = kept;
    return n;
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    find();
    return file(fd) ? write_any(fd, data, bytes, at, 0) : real_pwrite64(fd, data, bytes, at);
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off64_t at) { return pwrite64(fd, data, bytes, at); }
ssize_t write(int fd, const void *data, size_t bytes) {
    find();
    return file(fd) ? write_any(fd, data, bytes, 0, 1) : real_write(fd, data, bytes);
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t at) {
    find();
    char of = file(fd);
    if (!of) return real_pread64(fd, data, bytes, at);
    pthread_mutex_lock(&mutex);
    int failing = fails(READ, of), kept = errno;
    pthread_mutex_unlock(&mutex);
    if (failing && fault_errno) { errno = kept; return -1; }
    return real_pread64(fd, data, failing ? bytes / 2 : bytes, at);
}
ssize_t pread(int fd, void *data, size_t bytes, off64_t at) { return pread64(fd, data, bytes, at); }

int ftruncate64(int fd, off64_t size) {
    find();
    char of = file(fd);
    if (!of) return real_ftruncate64(fd, size);
    pthread_mutex_lock(&mutex);
    int done = fails(TRUNCATE, of) || is_full(of, fd, size) ? -1 : real_ftruncate64(fd, size);
    if (done == 0) put(TRUNCATE, of, 0, (uint64_t)size, NULL, 0);
    int kept = errno;
    pthread_mutex_unlock(&mutex);
    errno = kept;
    return done;
}
int ftruncate(int fd, off64_t size) { return ftruncate64(fd, size); }

static int sync_any(int fd, int (*sync)(int)) {
    char of = file(fd);
    if (!of) return sync(fd);
    pthread_mutex_lock(&mutex);
    int done = fails(SYNC, of) ? -1 : sync(fd);
    if (done == 0) put(SYNC, of, 0, 0, NULL, 0);
    int kept = errno;
    pthread_mutex_unlock(&mutex);
    errno = kept;
    return done;
}
int fsync(int fd) { find(); return sync_any(fd, real_fsync); }
int fdatasync(int fd) { find(); return sync_any(fd, real_fdatasync); }

int unlink(const char *path) {
    find();
    char of = letter(path);
    if (!of) return real_unlink(path);
    pthread_mutex_lock(&mutex);
    int done = fails(UNLINK, of) ? -1 : real_unlink(path);
    if (done == 0) put(UNLINK, of, 0, 0, NULL, 0);
    int kept = errno;
    pthread_mutex_unlock(&mutex);
    errno = kept;
    return done;
}

/* An answer is on its way from the moment this is called, so it is recorded before it is sent: "durable first" has no slack here. */
static void sending(int fd, const void *data, size_t bytes) {
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    if (!armed || log_fd < 0 || bytes < 12 || memcmp(data, "HTTP/1.1 ", 9) != 0) return;
    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0 || peer.sin_family != AF_INET) return;
    pthread_mutex_lock(&mutex);
    put(SEND, 0, ntohs(peer.sin_port), 0, data, 12);
    pthread_mutex_unlock(&mutex);
}
ssize_t send(int fd, const void *data, size_t bytes, int flags) { find(); sending(fd, data, bytes); return real_send(fd, data, bytes, flags); }
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    find();
    if (message->msg_iovlen) sending(fd, message->msg_iov[0].iov_base, message->msg_iov[0].iov_len);
    return real_sendmsg(fd, message, flags);
}

/* Called by the process itself once its environment is set (a fork of one that has everything imported). */
void shim_arm(void) {
    find();
    const char *path = getenv("SHIM_STORE"), *log = getenv("SHIM_LOG"), *fault = getenv("SHIM_FAULT"), *when_full = getenv("SHIM_FULL");
    char kind[16] = "", mode[8] = "";
    if (!path) return;
    snprintf(store, sizeof store, "%s", path);
    snprintf(folder, sizeof folder, "%s", path);
    if (strrchr(folder, '/')) *strrchr(folder, '/') = 0;
    if (when_full) snprintf(full, sizeof full, "%s", when_full);
    if (log) log_fd = real_open64(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    with_data = getenv("SHIM_DATA") != NULL;
    if (fault && sscanf(fault, "%15[a-z],%ld,%d,%7s", kind, &fault_n, &fault_errno, mode) == 4) {
        for (int k = 1; k <= READ; k++) if (!strcmp(kind, KINDS[k])) fault_kind = k;
        fault_on = !strcmp(mode, "on");
    }
    armed = 1;
}
