/* A stand-in for an accelerator: an external delegate that computes float32 operators in plain C,
   and fails in every way that drivers fail. Built for tests by standin.py, which lists its options.

   With -DEDGETPU it also has what libedgetpu exports, for the sticks that a file beside it lists. */
#define _GNU_SOURCE
#include "standin.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define CUSTOM_NAME "edgetpu-custom-op"

typedef struct {
  TfLiteDelegate base;
  char claim[100], fail[40], when[PATH_MAX], node[PATH_MAX], lock[PATH_MAX], calls[PATH_MAX], closed[PATH_MAX];
  int delay_us, switch_us, rows_max;
  struct stat born; /* the node as it was found: one that comes back is another */
} Device;

typedef struct {
  int code;
  TfLiteNode node; /* a copy: the runtime moves its own */
} Step;

typedef struct {
  Device* device;
  int count;
  Step* steps;
  size_t tensors;
  float** inner; /* memory of tensors that only this kernel sees */
  TfLiteIntArray* outputs;
} Kernel;

API int standin_users;   /* delegates that hold the lock: one process may have several */
static int lock_fd = -1;
static const void* last_model;       /* that the device was used for */
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* the device runs one call at a time */

/* ---- how it fails ---- */

static bool fails(const Device* d, const char* how) {
  return !strcmp(d->fail, how) && (!d->when[0] || !access(d->when, F_OK));
}

static void maybe_die(const Device* d, const char* stage) {
  char how[40];
  snprintf(how, sizeof how, "crash-%s", stage);
  if (fails(d, how)) raise(SIGSEGV);
  snprintf(how, sizeof how, "hang-%s", stage);
  while (fails(d, how)) usleep(1000);
}

static bool is_there(const Device* d) {
  struct stat now;
  if (!d->node[0]) return true;
  return !stat(d->node, &now) && now.st_ino == d->born.st_ino &&
         now.st_ctim.tv_sec == d->born.st_ctim.tv_sec && now.st_ctim.tv_nsec == d->born.st_ctim.tv_nsec;
}

static bool take_lock(const char* path) {
  if (!path[0] || standin_users++) return true;
  lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd >= 0 && !flock(lock_fd, LOCK_EX | LOCK_NB)) return true;
  if (lock_fd >= 0) close(lock_fd);
  lock_fd = -1, standin_users = 0;
  return false;
}

static void drop_lock(const char* path) {
  if (!path[0] || --standin_users) return;
  close(lock_fd);
  lock_fd = -1;
}

static void count(const char* path) {
  if (!path[0]) return;
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return;
  if (write(fd, ".", 1) != 1) perror("standin: count");
  close(fd);
}

/* ---- what it computes ---- */

static float activated(float v, int activation) {
  if (activation == kRelu) return v > 0 ? v : 0;
  if (activation == kRelu6) return v < 0 ? 0 : v > 6 ? 6 : v;
  if (activation == kReluN1To1) return v < -1 ? -1 : v > 1 ? 1 : v;
  return v;
}

static int elements(const TfLiteTensor* t) { return (int)(t->bytes / sizeof(float)); }

static void pairwise(const Step* s, const TfLiteTensor* a, const TfLiteTensor* b, const float* x,
                     const float* w, float* y, int n) {
  int activation = ((SimpleParams*)s->node.builtin_data)->activation;
  int a_step = elements(a) > 1, b_step = elements(b) > 1;
  for (int i = 0; i < n; i++) {
    float p = x[i * a_step], q = w[i * b_step];
    y[i] = activated(s->code == kAdd ? p + q : p * q, activation);
  }
}

static void fully_connected(const Step* s, const TfLiteTensor* weights, const float* x, const float* w,
                            const float* bias, float* y, int n) {
  int activation = ((SimpleParams*)s->node.builtin_data)->activation;
  int outputs = weights->dims->data[0], inputs = weights->dims->data[1];
  for (int i = 0; i < n; i++) {
    const float *row = x + i / outputs * inputs, *column = w + i % outputs * inputs;
    float sum = bias ? bias[i % outputs] : 0;
    for (int k = 0; k < inputs; k++) sum += row[k] * column[k];
    y[i] = activated(sum, activation);
  }
}

static int padded(int padding, int in, int out, int filter, int stride) {
  int missing = (out - 1) * stride + filter - in;
  return padding == kPaddingSame && missing > 0 ? missing / 2 : 0;
}

static void convolution(const Step* s, const TfLiteTensor* in, const TfLiteTensor* filter,
                        const TfLiteTensor* out, const float* x, const float* w, const float* bias,
                        float* y) {
  const ConvParams* p = s->node.builtin_data;
  const int *i = in->dims->data, *f = filter->dims->data, *o = out->dims->data;
  int top = padded(p->padding, i[1], o[1], f[1], p->stride_h);
  int left = padded(p->padding, i[2], o[2], f[2], p->stride_w);
  for (int b = 0; b < o[0]; b++)
    for (int r = 0; r < o[1]; r++)
      for (int c = 0; c < o[2]; c++)
        for (int k = 0; k < o[3]; k++) {
          float sum = bias ? bias[k] : 0;
          for (int fr = 0; fr < f[1]; fr++)
            for (int fc = 0; fc < f[2]; fc++) {
              int row = r * p->stride_h - top + fr, column = c * p->stride_w - left + fc;
              if (row < 0 || row >= i[1] || column < 0 || column >= i[2]) continue;
              const float* from = x + ((b * i[1] + row) * i[2] + column) * i[3];
              const float* with = w + ((k * f[1] + fr) * f[2] + fc) * f[3];
              for (int d = 0; d < i[3]; d++) sum += from[d] * with[d];
            }
          y[((b * o[1] + r) * o[2] + c) * o[3] + k] = activated(sum, p->activation);
        }
}

static void softmax(const Step* s, const TfLiteTensor* in, const float* x, float* y) {
  float beta = ((SoftmaxParams*)s->node.builtin_data)->beta;
  int depth = in->dims->data[in->dims->size - 1];
  for (int start = 0; start < elements(in); start += depth) {
    float most = x[start], sum = 0;
    for (int i = start; i < start + depth; i++) most = x[i] > most ? x[i] : most;
    for (int i = start; i < start + depth; i++) sum += y[i] = expf((x[i] - most) * beta);
    for (int i = start; i < start + depth; i++) y[i] /= sum;
  }
}

static float* memory(TfLiteContext* c, const Kernel* k, int tensor) {
  if (tensor < 0) return NULL;
  return k->inner[tensor] ? k->inner[tensor] : c->tensors[tensor].data;
}

static void compute(TfLiteContext* c, const Kernel* k, const Step* s) {
  const TfLiteIntArray* in = s->node.inputs;
  int first = in->data[0], second = in->size > 1 ? in->data[1] : -1, third = in->size > 2 ? in->data[2] : -1;
  int result = s->node.outputs->data[0];
  const TfLiteTensor *a = &c->tensors[first], *b = &c->tensors[second < 0 ? 0 : second];
  const TfLiteTensor* out = &c->tensors[result];
  const float *x = memory(c, k, first), *w = memory(c, k, second), *bias = memory(c, k, third);
  float* y = memory(c, k, result);
  if (s->code == kFullyConnected) fully_connected(s, b, x, w, bias, y, elements(out));
  else if (s->code == kConv2d) convolution(s, a, b, out, x, w, bias, y);
  else if (s->code == kSoftmax) softmax(s, a, x, y);
  else if (s->code == kCustom) for (int i = 0; i < elements(out); i++) y[i] = 2 * x[i];
  else pairwise(s, a, b, x, w, y, elements(out));
}

/* ---- the node that stands for the operators it took ---- */

static void* kernel_init(TfLiteContext* c, const char* raw, size_t length) {
  (void)length;
  const TfLiteDelegateParams* params = (const TfLiteDelegateParams*)raw;
  const TfLiteIntArray *nodes = params->nodes_to_replace, *outputs = params->output_tensors;
  Kernel* k = calloc(1, sizeof *k);
  k->device = params->delegate->data;
  k->count = nodes->size;
  k->steps = calloc((size_t)nodes->size + 1, sizeof *k->steps);
  k->tensors = c->tensors_size;
  k->inner = calloc(k->tensors, sizeof *k->inner);
  k->outputs = malloc(sizeof(int) * ((size_t)outputs->size + 1));
  memcpy(k->outputs, outputs, sizeof(int) * ((size_t)outputs->size + 1));
  for (int i = 0; i < nodes->size; i++) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    c->GetNodeAndRegistration(c, nodes->data[i], &node, &registration);
    k->steps[i] = (Step){registration->builtin_code, *node};
    int result = node->outputs->data[0];
    bool seen = false;
    for (int o = 0; o < outputs->size; o++) seen |= outputs->data[o] == result;
    if (!seen) k->inner[result] = malloc(c->tensors[result].bytes);
  }
  return k;
}

static void kernel_free(TfLiteContext* c, void* raw) {
  (void)c;
  Kernel* k = raw;
  for (size_t i = 0; i < k->tensors; i++) free(k->inner[i]);
  free(k->inner), free(k->steps), free(k->outputs), free(k);
}

static TfLiteStatus kernel_prepare(TfLiteContext* c, TfLiteNode* n) {
  (void)c, (void)n;
  return kOk;
}

static TfLiteStatus kernel_invoke(TfLiteContext* c, TfLiteNode* n) {
  Kernel* k = n->user_data;
  Device* d = k->device;
  count(d->calls);
  maybe_die(d, "invoke");
  pthread_mutex_lock(&busy);
  if (d->delay_us) usleep((unsigned)d->delay_us);
  if (d->switch_us && last_model && last_model != c) usleep((unsigned)d->switch_us);
  last_model = c;
  pthread_mutex_unlock(&busy);
  if (!is_there(d) || fails(d, "invoke")) {
    c->ReportError(c, "standin: device lost");
    return kError;
  }
  for (int i = 0; i < k->count; i++) compute(c, k, &k->steps[i]);
  for (int o = 0; o < k->outputs->size; o++) {
    TfLiteTensor* out = &c->tensors[k->outputs->data[o]];
    float* y = out->data;
    for (int i = 0; i < elements(out); i++) y[i] = fails(d, "nan") ? NAN : fails(d, "wrong") ? y[i] * 1.1f : y[i];
  }
  return kOk;
}

/* ---- the delegate ---- */

static const char* word_of(int code) {
  if (code == kFullyConnected) return "fc";
  if (code == kConv2d) return "conv";
  if (code == kSoftmax) return "softmax";
  if (code == kAdd) return "add";
  if (code == kMul) return "mul";
  return code == kCustom ? "custom" : NULL;
}

static bool takes(TfLiteContext* c, const Device* d, const TfLiteNode* n, const TfLiteRegistration* r) {
  const char* word = word_of(r->builtin_code);
  if (!word || (strcmp(d->claim, "all") && !strstr(d->claim, word))) return false;
  if (r->builtin_code == kCustom) return r->custom_name && !strcmp(r->custom_name, CUSTOM_NAME);
  for (int i = 0; i < n->inputs->size; i++)
    if (n->inputs->data[i] >= 0 && c->tensors[n->inputs->data[i]].type != kFloat32) return false;
  const TfLiteTensor* out = &c->tensors[n->outputs->data[0]];
  if (d->rows_max && out->dims->size && out->dims->data[0] > d->rows_max) return false;
  if (r->builtin_code == kConv2d) {
    const ConvParams* p = n->builtin_data;
    return p->dilation_w == 1 && p->dilation_h == 1;
  }
  if (r->builtin_code == kAdd || r->builtin_code == kMul)
    for (int i = 0; i < 2; i++) {
      int size = elements(&c->tensors[n->inputs->data[i]]);
      if (size != 1 && size != elements(out)) return false; /* no other broadcasting */
    }
  return true;
}

#ifdef OLD_ABI
/* The runtime reads on past the end of the registration: what lies there are the caller's variables.
   Here they are never nothing, which would go well by chance. */
#define LITTER volatile uintptr_t litter[64] __attribute__((unused)); for (int i = 0; i < 64; i++) litter[i] = 0x5a5a;
#else
#define LITTER
#endif

static TfLiteStatus delegate_prepare(TfLiteContext* c, TfLiteDelegate* base) {
  LITTER
  Device* d = base->data;
  maybe_die(d, "prepare");
  if (!is_there(d) || fails(d, "prepare")) {
    c->ReportError(c, "standin: the device does not answer. ");
    return kDelegateError;
  }
  TfLiteIntArray* plan; /* only lent */
  if (c->GetExecutionPlan(c, &plan) != kOk) return kError;
  TfLiteIntArray* mine = malloc(sizeof(int) * ((size_t)plan->size + 1));
  TfLiteIntArray* all = malloc(sizeof(int) * ((size_t)plan->size + 1));
  memcpy(all, plan, sizeof(int) * ((size_t)plan->size + 1));
  mine->size = 0;
  for (int i = 0; i < all->size; i++) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    if (c->GetNodeAndRegistration(c, all->data[i], &node, &registration) != kOk) continue;
    if (takes(c, d, node, registration)) mine->data[mine->size++] = all->data[i];
  }
  TfLiteRegistration registration = {
      .init = kernel_init, .free = kernel_free, .prepare = kernel_prepare, .invoke = kernel_invoke,
      .builtin_code = kDelegate, .custom_name = "StandinDelegate", .version = 1};
  TfLiteStatus status = c->ReplaceNodeSubsetsWithDelegateKernels(c, registration, mine, base);
  free(mine), free(all);
  return status;
}

static bool set_option(Device* d, const char* key, const char* value) {
  if (!strcmp(key, "claim")) snprintf(d->claim, sizeof d->claim, "%s", value);
  else if (!strcmp(key, "fail")) snprintf(d->fail, sizeof d->fail, "%s", value);
  else if (!strcmp(key, "when")) snprintf(d->when, sizeof d->when, "%s", value);
  else if (!strcmp(key, "node")) snprintf(d->node, sizeof d->node, "%s", value);
  else if (!strcmp(key, "lock")) snprintf(d->lock, sizeof d->lock, "%s", value);
  else if (!strcmp(key, "calls")) snprintf(d->calls, sizeof d->calls, "%s", value);
  else if (!strcmp(key, "closed")) snprintf(d->closed, sizeof d->closed, "%s", value);
  else if (!strcmp(key, "delay_us")) d->delay_us = atoi(value);
  else if (!strcmp(key, "rows_max")) d->rows_max = atoi(value);
  else if (!strcmp(key, "switch_us")) d->switch_us = atoi(value);
  else return false;
  return true;
}

#ifdef EDGETPU

/* A file beside the library, NAME.devices, lists what is plugged in: a line per device with "usb" or
   "pci" and its path; and lines "key=value" with options of the stand-in. */
struct edgetpu_device { int type; const char* path; };
enum { kPci = 0, kUsb = 1, kDevicesMax = 8 };

static FILE* beside(void) {
  Dl_info info;
  char path[PATH_MAX];
  if (!dladdr((void*)beside, &info)) return NULL;
  snprintf(path, sizeof path, "%s.devices", info.dli_fname);
  return fopen(path, "re");
}

API struct edgetpu_device* edgetpu_list_devices(size_t* count) {
  struct edgetpu_device* found = calloc(kDevicesMax, sizeof *found);
  char kind[8], path[PATH_MAX];
  *count = 0;
  FILE* file = beside();
  if (!file) return found;
  char line[PATH_MAX + 20];
  while (*count < kDevicesMax && fgets(line, sizeof line, file))
    if (sscanf(line, "%3[a-z] %4095s", kind, path) == 2 && (!strcmp(kind, "usb") || !strcmp(kind, "pci"))) {
      found[*count].type = strcmp(kind, "usb") ? kPci : kUsb;
      found[(*count)++].path = strdup(path);
    }
  fclose(file);
  return found;
}

API void edgetpu_free_devices(struct edgetpu_device* devices) {
  for (int i = 0; i < kDevicesMax; i++) free((void*)devices[i].path);
  free(devices);
}

API const char* edgetpu_version(void) { return "BuildLabel(STANDIN=1), RuntimeVersion(14)"; }

/* A stick that is new loads its firmware when it is opened first, and is lost to who opened it. */
static bool loads_firmware(const char* folder) {
  char path[PATH_MAX + 20], vendor[8] = "";
  snprintf(path, sizeof path, "%s/idVendor", folder);
  FILE* file = fopen(path, "r+e");
  if (!file) return false;
  bool is_new = fgets(vendor, sizeof vendor, file) && !strncmp(vendor, "1a6e", 4);
  if (is_new) rewind(file), fputs("18d1", file);
  fclose(file);
  if (!is_new) return false;
  snprintf(path, sizeof path, "%s/idProduct", folder);
  if ((file = fopen(path, "we"))) fputs("9302\n", file), fclose(file);
  return true;
}

/* "usb:1" is the second of that type; as the real one, it says nothing when there is none. */
static bool plug_in(Device* d, const char* wish) {
  int index = strchr(wish, ':') ? atoi(strchr(wish, ':') + 1) : 0;
  size_t count;
  struct edgetpu_device* found = edgetpu_list_devices(&count);
  bool taken = false;
  for (size_t i = 0; i < count; i++) {
    const char* kind = found[i].type == kUsb ? "usb" : "pci";
    if (wish[0] && wish[0] != ':' && strncmp(wish, kind, 3)) continue;
    if (index--) continue;
    snprintf(d->node, sizeof d->node, "%s", found[i].path);
    taken = !loads_firmware(found[i].path);
    break;
  }
  edgetpu_free_devices(found);
  char line[PATH_MAX + 20], key[40], value[PATH_MAX];
  FILE* file = beside();
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "%39[a-z_]=%4095s", key, value) == 2) set_option(d, key, value);
  if (file) fclose(file);
  return taken;
}

#endif

static TfLiteDelegate* refuse(Device* d, const char* why, void (*report)(const char*)) {
  if (why && report) report(why);
  free(d);
  return NULL;
}

API TfLiteDelegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values,
                                                  size_t count, void (*report)(const char*)) {
  Device* d = calloc(1, sizeof *d);
#ifdef EDGETPU
  strcpy(d->claim, "custom");
#else
  strcpy(d->claim, "all");
#endif
  for (size_t i = 0; i < count; i++) {
#ifdef EDGETPU
    if (!strcmp(keys[i], "device")) {
      if (!plug_in(d, values[i])) return refuse(d, NULL, NULL);
      continue;
    }
#endif
    if (set_option(d, keys[i], values[i])) continue;
    char why[100];
    snprintf(why, sizeof why, "standin: unknown option '%.40s'", keys[i]);
    return refuse(d, why, report);
  }
  maybe_die(d, "create");
  if (fails(d, "create")) return refuse(d, "standin: the device refuses", report);
  if (fails(d, "create-silent")) return refuse(d, NULL, NULL);
  if (d->node[0] && stat(d->node, &d->born)) return refuse(d, "standin: no device", report);
  if (!take_lock(d->lock)) return refuse(d, "standin: another process has the device", report);
  d->base.data = d;
  d->base.Prepare = delegate_prepare;
  /* An operator that only the delegate has cannot be planned without it. */
  d->base.flags = strstr(d->claim, "custom") ? kAllowDynamicTensors : 0;
  return &d->base;
}

API void tflite_plugin_destroy_delegate(TfLiteDelegate* base) {
  Device* d = base->data;
  drop_lock(d->lock);
  count(d->closed);
  free(d);
}
