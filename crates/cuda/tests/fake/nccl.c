// The functions of NCCL that we call, for tests: between threads of one process, whose memory is everybody's. It holds us to
// what NCCL's manual says: GPUs are different ones, groups are ended, both ends of a message agree on its length, whoever
// waits goes on when its communicator is aborted; and two ranks are connected by a group of both before one waits alone.
//
// With FAILS=N the Nth message that rank 1 would send fails.

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MOST 16
#define OPS 256

enum { SUCCESS = 0, SYSTEM = 2, INTERNAL = 3, ARGUMENT = 4, USAGE = 5 };
enum { FLOAT32 = 7 };

typedef struct Message {
  float* data;
  size_t len;
  struct Message* next;
} Message;

typedef struct Clique {
  int ranks;
  // From each rank to each.
  Message* boxes[MOST][MOST];
  int connected[MOST][MOST];
} Clique;

typedef struct Comm {
  Clique* all;
  int rank, aborted, used;
} Comm;

typedef struct Op {
  Comm* comm;
  void* at;
  size_t len;
  int peer, send;
} Op;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static __thread Op ops[OPS];
static __thread int count, depth, failed;
#ifdef FAILS
static int sent;
#endif

int ncclGetVersion(int* version) {
  *version = 22105;
  return SUCCESS;
}

const char* ncclGetErrorString(int code) {
  switch (code) {
    case SYSTEM: return "unhandled system error";
    case INTERNAL: return "internal error";
    case ARGUMENT: return "invalid argument";
    case USAGE: return "invalid usage";
    default: return "unknown result code";
  }
}

int ncclCommInitAll(Comm** comms, int n, const int* gpus) {
  if (n < 1 || n > MOST) return ARGUMENT;
  for (int i = 0; i < n; i++)
    for (int j = 0; j < i; j++)
      if (gpus[i] == gpus[j]) return USAGE;
  Clique* all = calloc(1, sizeof(Clique));
  all->ranks = n;
  for (int i = 0; i < n; i++) {
    comms[i] = calloc(1, sizeof(Comm));
    comms[i]->all = all;
    comms[i]->rank = i;
  }
  return SUCCESS;
}

// What is left of it is never freed: whoever used it after would be told so, and not crash.
int ncclCommAbort(Comm* comm) {
  pthread_mutex_lock(&lock);
  int again = comm->aborted;
  comm->aborted = 1;
  pthread_cond_broadcast(&woken);
  while (comm->used) pthread_cond_wait(&woken, &lock);
  pthread_mutex_unlock(&lock);
  return again ? ARGUMENT : SUCCESS;
}

int ncclGroupStart(void) {
  depth++;
  return SUCCESS;
}

// A group of which a part failed does nothing.
static int add(Op op, int type) {
  int code = SUCCESS;
  if (!op.comm || type != FLOAT32 || op.peer < 0 || op.peer >= op.comm->all->ranks) code = ARGUMENT;
  // We send nothing outside of groups.
  else if (!depth || count == OPS) code = USAGE;
#ifdef FAILS
  pthread_mutex_lock(&lock);
  if (!code && op.send && op.comm->rank == 1 && ++sent == FAILS) code = SYSTEM;
  pthread_mutex_unlock(&lock);
#endif
  if (code) failed = code;
  else ops[count++] = op;
  return code;
}

int ncclSend(const void* from, size_t len, int type, int peer, Comm* comm, void* stream) {
  (void)stream;
  return add((Op){comm, (void*)from, len, peer, 1}, type);
}

int ncclRecv(void* to, size_t len, int type, int peer, Comm* comm, void* stream) {
  (void)stream;
  return add((Op){comm, to, len, peer, 0}, type);
}

static void send(Op* op) {
  Message* m = malloc(sizeof(Message));
  m->data = malloc(op->len * sizeof(float) + 1);
  memcpy(m->data, op->at, op->len * sizeof(float));
  m->len = op->len;
  m->next = NULL;
  Message** last = &op->comm->all->boxes[op->comm->rank][op->peer];
  while (*last) last = &(*last)->next;
  *last = m;
}

static int receive(Op* op) {
  Message** box = &op->comm->all->boxes[op->peer][op->comm->rank];
  op->comm->used++;
  while (!*box && !op->comm->aborted) pthread_cond_wait(&woken, &lock);
  op->comm->used--;
  pthread_cond_broadcast(&woken);
  if (op->comm->aborted) return INTERNAL;
  Message* m = *box;
  *box = m->next;
  int fits = m->len == op->len;
  if (fits) memcpy(op->at, m->data, m->len * sizeof(float));
  free(m->data);
  free(m);
  return fits ? SUCCESS : ARGUMENT;
}

int ncclGroupEnd(void) {
  if (!depth || --depth) return depth ? SUCCESS : USAGE;
  int n = count, code = failed;
  count = failed = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n && !code; i++) {
    if (ops[i].comm->aborted) code = ARGUMENT;
    for (int j = 0; j < n; j++)
      if (ops[j].comm->all == ops[i].comm->all && ops[j].comm->rank == ops[i].peer)
        ops[i].comm->all->connected[ops[i].comm->rank][ops[i].peer] = 1;
    if (!ops[i].comm->all->connected[ops[i].comm->rank][ops[i].peer]) code = USAGE;
  }
  for (int i = 0; i < n && !code; i++)
    if (ops[i].send) send(&ops[i]);
  pthread_cond_broadcast(&woken);
  for (int i = 0; i < n && !code; i++)
    if (!ops[i].send) code = receive(&ops[i]);
  pthread_mutex_unlock(&lock);
  return code;
}
