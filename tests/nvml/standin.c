/* A stand-in for libnvidia-ml.so.1, driven by a text file of key=value lines ($NVML_STANDIN).
 *
 *   gpus=8                       without it nvmlInit fails: driver not loaded
 *   power=250000                 a value of all GPUs, in NVML's unit
 *   3.power=250000               … of GPU 3
 *   error.FUNCTION=15            what FUNCTION returns; 3.error.FUNCTION: for GPU 3; error.*: every function
 *   hang.FUNCTION=1              FUNCTION does not return until the line is gone; 3.hang.FUNCTION
 *   field.82=60, field.82.error=3, field.82.type=1     a field value
 *   gpm.2=45.5, gpm=0            a performance counter; 0: not supported
 *   wave_hz=1                    load is a square wave of 0 and 100 %; else gpu, mem, enc, dec in percent
 *   idle=1                       no samples of load
 *   sample_us=20000              the driver's sampling period
 *   now_us=…                     simulated time, else the clock
 *   mig=2                        MIG is on, with two instances
 *   xid.1=3:79                   the first XID: 79, of GPU 3; every set reports every number once
 *
 * The file is read again when it changed, at most every 20 ms, or by standin_reload(). */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { MAX_GPUS = 16, MAX_KEYS = 512, MAX_FUNCTIONS = 128, MAX_MIG = 7, BUFFER = 120, MAX_FIELDS = 512 };
typedef struct { int gpu, mig; } Device;
typedef struct { char name[64]; uint32_t hash; int gpu; double value; char text[64]; } Key;
typedef struct { uint64_t at; union { uint32_t u; uint64_t q; } value; } Sample;

typedef struct { int is_set, code, type; double value; } FieldState;
typedef struct {
    long generation;
    int n_keys, n_gpus, every_error, lost[MAX_GPUS];
    int error_of[MAX_FUNCTIONS][MAX_GPUS + 1], hangs[MAX_FUNCTIONS][MAX_GPUS + 1];
    Key keys[MAX_KEYS];
    FieldState fields_of[MAX_GPUS + 1][MAX_FIELDS];
} State;

static Device devices[MAX_GPUS], instances[MAX_GPUS][MAX_MIG];
/* A file is read into the next one, and only then it is the state: other threads never see half of it, and what
 * they hold stays as it is for as long as a call lasts. */
static State states[8], *volatile state = states;
static char functions[MAX_FUNCTIONS][64];
static volatile int n_functions;
static long calls[MAX_FUNCTIONS][MAX_GPUS + 1];
static struct timespec changed;
static uint64_t looked;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, naming = PTHREAD_MUTEX_INITIALIZER;

static uint64_t clock_us(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int function_id(const char *name) {
    int id = 0;
    pthread_mutex_lock(&naming);
    while (id < n_functions && strcmp(functions[id], name)) id++;
    if (id == n_functions) {
        snprintf(functions[id], sizeof functions[0], "%s", name);
        n_functions++;
    }
    pthread_mutex_unlock(&naming);
    return id;
}

static uint32_t hash(const char *text) {
    uint32_t sum = 2166136261u;
    while (*text) sum = (sum ^ (unsigned char)*text++) * 16777619u;
    return sum;
}

static void read_line(State *to, char *line) {
    char *value = strchr(line, '='), *name = line;
    int gpu = -1;
    if (!value || to->n_keys == MAX_KEYS) return;
    *value++ = 0;
    value[strcspn(value, "\n")] = 0;
    if (name[0] >= '0' && name[0] <= '9') gpu = (int)strtol(name, &name, 10), name++;
    Key *key = &to->keys[to->n_keys++];
    snprintf(key->name, sizeof key->name, "%.60s", name);
    snprintf(key->text, sizeof key->text, "%.60s", value);
    key->hash = hash(key->name);
    key->gpu = gpu, key->value = atof(value);
    if (!strcmp(name, "gpus")) to->n_gpus = (int)key->value;
    if (!strcmp(name, "error.*")) to->every_error = (int)key->value;
    if (!strcmp(name, "lost") && gpu >= 0) to->lost[gpu] = 1;
    if (!strncmp(name, "error.", 6) && name[6] != '*') to->error_of[function_id(name + 6)][gpu + 1] = (int)key->value;
    if (!strncmp(name, "field.", 6)) {
        FieldState *field = &to->fields_of[gpu + 1][atoi(name + 6) % MAX_FIELDS];
        if (strstr(name, ".error")) field->code = (int)key->value;
        else if (strstr(name, ".type")) field->type = (int)key->value;
        else field->value = key->value, field->is_set = 1;
    }
    if (!strncmp(name, "hang.", 5)) to->hangs[function_id(name + 5)][gpu + 1] = (int)key->value;
}

static void load(int force) {  // with the lock
    const char *path = getenv("NVML_STANDIN");
    struct stat now;
    char line[256];
    if (!path || stat(path, &now)) return;
    if (!force && now.st_mtim.tv_sec == changed.tv_sec && now.st_mtim.tv_nsec == changed.tv_nsec) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    changed = now.st_mtim;
    State *next = state + 1 < states + sizeof states / sizeof *states ? state + 1 : states;
    long generation = state->generation + 1;
    memset(next, 0, sizeof *next);
    while (fgets(line, sizeof line, file)) read_line(next, line);
    fclose(file);
    next->generation = generation;
    __sync_synchronize();
    state = next;
}

static void refresh(void) {
    uint64_t now = clock_us(CLOCK_MONOTONIC);
    if (now - looked < 20000) return;
    pthread_mutex_lock(&lock);
    looked = now;
    load(0);
    pthread_mutex_unlock(&lock);
}

void standin_reload(void) { pthread_mutex_lock(&lock); load(1); pthread_mutex_unlock(&lock); }
void standin_reset(void) { memset(calls, 0, sizeof calls); }
/* Calls of a function for a GPU, -1: for none in particular. */
long standin_calls(const char *name, int gpu) { return calls[function_id(name)][gpu + 1]; }
const char *standin_function(int id) { return id < n_functions ? functions[id] : NULL; }

static const Key *find(const State *in, int gpu, const char *name) {
    const Key *found = NULL;
    uint32_t wanted = hash(name);
    for (const Key *key = in->keys; key < in->keys + in->n_keys; key++)
        if (key->hash == wanted && (key->gpu == gpu || (key->gpu < 0 && !found))) found = key;
    return found;
}
static double number(int gpu, const char *name, double otherwise) {  // of a literal: its address is remembered
    static __thread struct { const char *name; int gpu; long generation; const Key *key; } known[1024], *slot;
    const State *now = state;
    slot = &known[((uintptr_t)name * 31 + (unsigned)gpu * 7919) % 1024];
    if (slot->name != name || slot->gpu != gpu || slot->generation != now->generation)
        slot->name = name, slot->gpu = gpu, slot->generation = now->generation, slot->key = find(now, gpu, name);
    const Key *key = slot->key;
    return key ? key->value : otherwise;
}
static uint64_t now_us(void) {
    double simulated = number(-1, "now_us", 0);
    return simulated ? (uint64_t)simulated : clock_us(CLOCK_REALTIME);
}

static int enter(int id, int gpu) {
    refresh();
    calls[id][gpu + 1]++;
    while (state->hangs[id][0] || state->hangs[id][gpu + 1]) {
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        refresh();
    }
    const State *now = state;
    if (gpu >= 0 && now->lost[gpu]) return 15;
    if (now->error_of[id][gpu + 1]) return now->error_of[id][gpu + 1];
    return now->error_of[id][0] ? now->error_of[id][0] : now->every_error;
}

#define ENTER(gpu) do { static int id = -1; if (id < 0) id = function_id(__func__); \
    int code = enter(id, gpu); if (code) return code; } while (0)
#define ONE(function, type, key, otherwise) \
    int function(Device *d, type *value) { ENTER(d->gpu); *value = (type)number(d->gpu, key, otherwise); return 0; }
#define UNLESS(key) do { if (!number(d->gpu, key, 1)) return 3; } while (0)

int nvmlInitWithFlags(unsigned flags) { ENTER(-1); standin_reload(); return state->n_gpus ? 0 : 9; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { ENTER(-1); return 0; }
const char *nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { ENTER(-1); *count = state->n_gpus; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { ENTER(-1); snprintf(text, size, "580.65.06"); return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **d) {
    if ((int)index >= state->n_gpus) return 2;
    ENTER((int)index);
    devices[index] = (Device){(int)index, -1};
    *d = &devices[index];
    return 0;
}
int nvmlDeviceGetUUID(Device *d, char *text, unsigned size) {
    ENTER(d->gpu);
    if (d->mig < 0) snprintf(text, size, "GPU-%08d-1111-2222-3333-444444444444", d->gpu);
    else snprintf(text, size, "MIG-%08d-%04d-2222-3333-444444444444", d->gpu, d->mig);
    return 0;
}
int nvmlDeviceGetName(Device *d, char *text, unsigned size) {
    ENTER(d->gpu);
    snprintf(text, size, d->mig < 0 ? "NVIDIA H100 80GB HBM3" : "NVIDIA H100 80GB HBM3 MIG 1g.10gb");
    return 0;
}
int nvmlDeviceGetSerial(Device *d, char *text, unsigned size) {
    ENTER(d->gpu);
    snprintf(text, size, "165432100000%d", d->gpu);
    return 0;
}
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(Device *d, Pci *pci) {
    ENTER(d->gpu);
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x10 + d->gpu;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    return 0;
}
int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) {
    ENTER(d->gpu);
    UNLESS("has_mig");
    *current = *pending = number(d->gpu, "mig", 0) > 0;
    return 0;
}
ONE(nvmlDeviceGetMaxMigDeviceCount, unsigned, "max_mig", 7)
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, Device **instance) {
    ENTER(d->gpu);
    if (index >= number(d->gpu, "mig", 0)) return 6;
    instances[d->gpu][index] = (Device){d->gpu, (int)index};
    *instance = &instances[d->gpu][index];
    return 0;
}
ONE(nvmlDeviceGetMinorNumber, unsigned, "minor", d->gpu)
ONE(nvmlDeviceGetGpuInstanceId, unsigned, "gpu_instance", d->mig + 1)

static uint32_t wave(double hz, uint64_t at) { return (uint64_t)(at * 2 * hz / 1e6) % 2 ? 0 : 100; }
static uint32_t level(int gpu, unsigned type) {
    static const char *names[] = {"power", "gpu", "mem", "enc", "dec"};
    static const double otherwise[] = {250000, 50, 20, 0, 0};
    return (uint32_t)number(gpu, names[type], otherwise[type]);
}
static uint32_t sampled(int gpu, unsigned type, uint64_t at) {
    double hz = type == 1 ? number(gpu, "wave_hz", 0) : 0;
    return hz ? wave(hz, at) : level(gpu, type);
}
int nvmlDeviceGetSamples(Device *d, unsigned type, unsigned long long seen, unsigned *value_type, unsigned *count,
                         Sample *samples) {
    ENTER(d->gpu);
    UNLESS("has_samples");
    if (type > 4) return 3;
    if (!samples) { *count = BUFFER; return 0; }
    if (type && number(d->gpu, "idle", 0)) return 6;
    uint64_t period = (uint64_t)number(d->gpu, "sample_us", 20000), now = now_us();
    uint64_t last = now / period, first = last - BUFFER + 1;
    if (seen / period + 1 > first) first = seen / period + 1;
    if (first > last) return 6;
    if (last - first + 1 > *count) return 7;
    double hz = type == 1 ? number(d->gpu, "wave_hz", 0) : 0;
    uint32_t constant = level(d->gpu, type);
    *value_type = 1, *count = 0;
    for (uint64_t at = first; at <= last; at++, (*count)++) {
        memset(&samples[*count].value, 0xAB, 8);
        samples[*count].at = at * period;
        samples[*count].value.u = hz ? wave(hz, at * period - period / 2) : constant;
    }
    return 0;
}
int nvmlDeviceGetUtilizationRates(Device *d, unsigned *rates) {
    ENTER(d->gpu);
    int idle = (int)number(d->gpu, "idle", 0);
    rates[0] = idle ? 0 : sampled(d->gpu, 1, now_us()), rates[1] = idle ? 0 : sampled(d->gpu, 2, 0);
    return 0;
}
int nvmlDeviceGetEncoderUtilization(Device *d, unsigned *percent, unsigned *period) {
    ENTER(d->gpu);
    *percent = sampled(d->gpu, 3, 0), *period = 166000;
    return 0;
}
int nvmlDeviceGetDecoderUtilization(Device *d, unsigned *percent, unsigned *period) {
    ENTER(d->gpu);
    *percent = sampled(d->gpu, 4, 0), *period = 166000;
    return 0;
}

#define GIB (1024.0 * 1024 * 1024)
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned long long total, free, used; } MemoryV1;
int nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *memory) {
    ENTER(d->gpu);
    UNLESS("has_memory_v2");
    if (memory->version != 0x2000028) return 25;
    memory->total = (d->mig < 0 ? 80 : 10) * GIB, memory->reserved = GIB;
    memory->used = number(d->gpu, "used", 20 * GIB) / (d->mig < 0 ? 1 : 4);
    memory->free = memory->total - memory->reserved - memory->used;
    return 0;
}
int nvmlDeviceGetMemoryInfo(Device *d, MemoryV1 *memory) {
    ENTER(d->gpu);
    memory->total = 80 * GIB, memory->used = number(d->gpu, "used", 20 * GIB) + GIB;
    memory->free = memory->total - memory->used;
    return 0;
}

typedef struct { unsigned version, sensor; int celsius; } TemperatureV1;
int nvmlDeviceGetTemperatureV(Device *d, TemperatureV1 *temperature) {
    ENTER(d->gpu);
    UNLESS("has_temperature_v");
    if (temperature->version != 0x100000C) return 25;
    temperature->celsius = (int)number(d->gpu, "celsius", 55);
    return 0;
}
int nvmlDeviceGetTemperature(Device *d, unsigned sensor, unsigned *celsius) {
    ENTER(d->gpu);
    *celsius = (unsigned)number(d->gpu, "celsius", 55);
    return 0;
}
int nvmlDeviceGetTemperatureThreshold(Device *d, unsigned which, unsigned *celsius) {
    static const unsigned limits[] = {95, 90, 100};
    ENTER(d->gpu);
    if (which > 2) return 3;
    *celsius = limits[which];
    return 0;
}
ONE(nvmlDeviceGetPowerUsage, unsigned, "power", 250000)
ONE(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit", 700000)
int nvmlDeviceGetClockInfo(Device *d, unsigned type, unsigned *mhz) {
    ENTER(d->gpu);
    *mhz = (unsigned)(type == 1 ? number(d->gpu, "sm_mhz", 1980) : number(d->gpu, "memory_mhz", 2619));
    return 0;
}
ONE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "reasons", 1)
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "reasons", 1)
ONE(nvmlDeviceGetCurrPcieLinkWidth, unsigned, "width", 16)
ONE(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, "generation", 5)
ONE(nvmlDeviceGetMaxPcieLinkWidth, unsigned, "max_width", 16)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, "max_generation", 5)
ONE(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned, "gpu_max_generation", 5)
int nvmlDeviceGetFanSpeed(Device *d, unsigned *percent) {
    ENTER(d->gpu);
    const Key *fan = find(state, d->gpu, "fan");
    if (!fan) return 3;
    *percent = (unsigned)fan->value;
    return 0;
}

typedef struct { unsigned field, scope; long long at, latency; unsigned type, code; union { double d; uint64_t q; unsigned u; int i; } value; } Field;
int nvmlDeviceGetFieldValues(Device *d, int count, Field *fields) {
    ENTER(d->gpu);
    const State *now = state;
    for (Field *field = fields; field < fields + count; field++) {
        const FieldState *own = &now->fields_of[d->gpu + 1][field->field % MAX_FIELDS];
        const FieldState *said = own->is_set || own->code ? own : &now->fields_of[0][field->field % MAX_FIELDS];
        field->code = said->code ? said->code : said->is_set ? 0 : 3;
        if ((field->field == 138 || field->field == 139) && field->scope != 0xFFFFFFFF) field->code = 2;
        if (field->code) continue;
        field->type = said->type ? said->type : field->field == 82 ? 1 : 3;
        memset(&field->value, 0xAB, sizeof field->value);
        if (field->type == 1) field->value.u = (unsigned)said->value;
        else if (field->type == 5) field->value.i = (int)said->value;
        else field->value.q = (uint64_t)said->value;
    }
    return 0;
}

typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, Process *processes) {
    ENTER(d->gpu);
    unsigned room = *count, found = 0;
    const State *now = state;
    for (const Key *key = now->keys; key < now->keys + now->n_keys; key++) {
        if (strncmp(key->name, "process.", 8) || (key->gpu >= 0 && key->gpu != d->gpu)) continue;
        uint64_t used = key->value < 0 ? ~0ULL : (uint64_t)key->value;
        if (processes && found < room) processes[found] = (Process){(unsigned)atoi(key->name + 8), used, ~0u, ~0u};
        found++;
    }
    *count = found;
    return found > room ? 7 : 0;
}

typedef struct { unsigned version, supported; } GpmSupport;
typedef struct { unsigned id, code; double value; const char *info[3]; } GpmMetric;
typedef struct { unsigned version, count; int *older, *newer; GpmMetric metrics[]; } GpmQuestion;
int nvmlGpmQueryDeviceSupport(Device *d, GpmSupport *support) {
    ENTER(d->gpu);
    if (support->version != 1) return 25;
    support->supported = number(d->gpu, "gpm", 1) != 0;
    return 0;
}
int nvmlGpmSampleAlloc(int **sample) { ENTER(-1); *sample = calloc(1, 4096); return 0; }
int nvmlGpmSampleFree(int *sample) { ENTER(-1); free(sample); return 0; }
int nvmlGpmSampleGet(Device *d, int *sample) { ENTER(d->gpu); sample[0] = d->gpu, sample[1]++; return 0; }
int nvmlGpmMetricsGet(GpmQuestion *question) {
    ENTER(question->newer[0]);
    char name[32];
    if (question->version != 1 || !question->older[1] || question->older == question->newer) return 2;
    for (unsigned i = 0; i < question->count; i++) {
        snprintf(name, sizeof name, "gpm.%u", question->metrics[i].id);
        const Key *value = find(state, question->newer[0], name);
        question->metrics[i].code = value ? 0 : 3;
        question->metrics[i].value = value ? value->value : 0;
    }
    return 0;
}

typedef struct { Device *device; unsigned long long type, data; unsigned instance, compute; } Event;
int nvmlDeviceGetSupportedEventTypes(Device *d, unsigned long long *types) {
    ENTER(d->gpu);
    *types = number(d->gpu, "has_events", 1) ? 0x1F : 0;
    return 0;
}
int nvmlEventSetCreate(int **set) { ENTER(-1); *set = calloc(MAX_GPUS + 1, sizeof(int)); return 0; }
int nvmlEventSetFree(int *set) { ENTER(-1); return 0; }
int nvmlDeviceRegisterEvents(Device *d, unsigned long long types, int *set) { ENTER(d->gpu); set[d->gpu] = 1; return 0; }
int nvmlEventSetWait_v2(int *set, Event *event, unsigned timeout_ms) {
    ENTER(-1);
    // Looked at seldom: a driver sleeps until something happens, and what this takes counts as the program's.
    for (unsigned waited = 0; waited < timeout_ms; waited += 250) {
        refresh();
        const State *now = state;
        for (const Key *key = now->keys; key < now->keys + now->n_keys; key++) {
            int number = strncmp(key->name, "xid.", 4) ? 0 : atoi(key->name + 4), gpu = 0, xid = 0;
            if (number != set[MAX_GPUS] + 1 || sscanf(key->text, "%d:%d", &gpu, &xid) != 2 || !set[gpu]) continue;
            set[MAX_GPUS] = number;  // the last XID that this set reported
            *event = (Event){&devices[gpu], 8, (unsigned long long)xid, ~0u, ~0u};
            return 0;
        }
        nanosleep(&(struct timespec){0, 250000000}, NULL);
    }
    return 10;
}
