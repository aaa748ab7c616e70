/* What driver.py does to a node: libnvml_control.so. Every function locks the node and wakes who waits in it.
 *
 * A number is addressed by table, GPU, index and scope: the scope is the link of a field or of a link's value, the
 * slot of a MIG instance. An address that does not exist answers false. */
#include "node.h"

#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))

enum table {
    VALUE_TABLE,
    FIELD_TABLE,
    LINK_TABLE,
    GPM_TABLE,
    MIG_TABLE,
    NODE_TABLE,
    GPU_TEXT_TABLE,
    NODE_TEXT_TABLE,
    FUNCTION_TABLE,
};

#define NAME(name) #name,
static const char *const value_names[] = {VALUES(NAME)};
static const char *const link_names[] = {LINK_VALUES(NAME)};
static const char *const mig_names[] = {MIG_VALUES(NAME)};
static const char *const node_names[] = {NODE_VALUES(NAME)};
static const char *const gpu_texts[] = {GPU_TEXTS(NAME)};
static const char *const node_texts[] = {NODE_TEXTS(NAME)};
static const char *const function_names[] = {FUNCTIONS(NAME)};

/* The name of entry `index` of a table; NULL behind the last one, and for tables that go by number. */
EXPORT const char *control_name(uint32_t table, uint32_t index)
{
    static const struct {
        const char *const *names;
        uint32_t count;
    } tables[] = {
        [VALUE_TABLE] = {value_names, V_COUNT},       [LINK_TABLE] = {link_names, L_COUNT},
        [MIG_TABLE] = {mig_names, M_COUNT},           [NODE_TABLE] = {node_names, N_COUNT},
        [GPU_TEXT_TABLE] = {gpu_texts, T_COUNT},      [NODE_TEXT_TABLE] = {node_texts, TN_COUNT},
        [FUNCTION_TABLE] = {function_names, F_COUNT},
    };
    if (table >= sizeof tables / sizeof *tables || index >= tables[table].count)
        return NULL;
    return tables[table].names[index];
}

EXPORT struct node *control_create(const char *path)
{
    return node_create(path);
}

EXPORT struct node *control_open(const char *path)
{
    return node_map(path);
}

EXPORT void control_close(struct node *node)
{
    munmap(node, sizeof *node);
}

#define ADDRESS struct node *node, uint32_t table, uint32_t gpu, uint32_t index, uint32_t scope

static struct cell *find(ADDRESS)
{
    if (table == NODE_TABLE)
        return index < N_COUNT ? &node->value[index] : NULL;
    if (gpu >= MAX_GPUS)
        return NULL;
    struct gpu *at = &node->gpu[gpu];
    switch (table) {
    case VALUE_TABLE:
        return index < V_COUNT ? &at->value[index] : NULL;
    case FIELD_TABLE:
        return index < MAX_FIELDS && scope < MAX_LINKS ? &at->field[index][scope] : NULL;
    case LINK_TABLE:
        return index < L_COUNT && scope < MAX_LINKS ? &at->link[scope][index] : NULL;
    case GPM_TABLE:
        return index < MAX_METRICS ? &at->gpm[index] : NULL;
    case MIG_TABLE:
        return index < M_COUNT && scope < MAX_MIG ? &at->mig[scope][index] : NULL;
    default:
        return NULL;
    }
}

static bool finish(struct node *node, bool done)
{
    node_changed(node);
    node_unlock(node);
    return done;
}

/* Make a number what it is from now on. It is present then, and answers no error. */
EXPORT bool control_set(ADDRESS, uint64_t value, uint32_t type)
{
    node_lock(node);
    struct cell *cell = find(node, table, gpu, index, scope);
    if (cell) {
        if (!cell->present)
            *cell = (struct cell){.mask = UINT64_MAX, .present = 1};
        cell->base = value;
        cell->since = node_now(node);
        cell->type = type;
        cell->result = 0;
    }
    return finish(node, cell != NULL);
}

/* Let it move on from where it is, `rate` thousandths a second. False also where nothing was set. */
EXPORT bool control_rate(ADDRESS, uint64_t rate)
{
    node_lock(node);
    struct cell *cell = find(node, table, gpu, index, scope);
    bool present = cell && cell->present;
    if (present) {
        uint64_t now = node_now(node);
        cell->base = cell_value(cell, now);
        cell->since = now;
        cell->rate = rate;
    }
    return finish(node, present);
}

/* Wrap at 2^bits. */
EXPORT bool control_width(ADDRESS, uint32_t bits)
{
    node_lock(node);
    struct cell *cell = find(node, table, gpu, index, scope);
    bool present = cell && cell->present && bits >= 1 && bits <= 64;
    if (present)
        cell->mask = UINT64_MAX >> (64 - bits);
    return finish(node, present);
}

EXPORT bool control_result(ADDRESS, uint32_t result)
{
    node_lock(node);
    struct cell *cell = find(node, table, gpu, index, scope);
    if (cell)
        cell->result = result;
    return finish(node, cell != NULL);
}

EXPORT bool control_remove(ADDRESS)
{
    node_lock(node);
    struct cell *cell = find(node, table, gpu, index, scope);
    if (cell)
        cell->present = 0;
    return finish(node, cell != NULL);
}

EXPORT bool control_get(ADDRESS, uint64_t *value)
{
    node_lock(node);
    const struct cell *cell = find(node, table, gpu, index, scope);
    bool present = cell && cell->present;
    if (present)
        *value = cell_value(cell, node_now(node));
    node_unlock(node);
    return present;
}

/* MIG_TABLE: the UUID of the instance in slot `index`. */
EXPORT bool control_text(struct node *node, uint32_t table, uint32_t gpu, uint32_t index, const char *text)
{
    char *at = NULL;
    if (table == NODE_TEXT_TABLE && index < TN_COUNT)
        at = node->text[index];
    else if (table == GPU_TEXT_TABLE && gpu < MAX_GPUS && index < T_COUNT)
        at = node->gpu[gpu].text[index];
    else if (table == MIG_TABLE && gpu < MAX_GPUS && index < MAX_MIG)
        at = node->gpu[gpu].mig_uuid[index];
    if (!at || strlen(text) >= TEXT)
        return false;
    node_lock(node);
    strcpy(at, text);
    return finish(node, true);
}

EXPORT bool control_gpus(struct node *node, uint32_t count)
{
    if (count > MAX_GPUS)
        return false;
    node_lock(node);
    node->gpus = count;
    return finish(node, true);
}

/* A slot that comes or goes: handles of what lived there before are invalid for good. */
EXPORT bool control_mig_generation(struct node *node, uint32_t gpu, uint32_t slot)
{
    if (gpu >= MAX_GPUS || slot >= MAX_MIG)
        return false;
    node_lock(node);
    node->gpu[gpu].mig_generation[slot]++;
    return finish(node, true);
}

EXPORT bool control_processes(struct node *node, uint32_t gpu, uint32_t kind, const nvmlProcessInfo_t *list,
                              uint32_t count)
{
    if (gpu >= MAX_GPUS || kind > 2 || count > MAX_PROCESSES)
        return false;
    node_lock(node);
    memcpy(node->gpu[gpu].process[kind], list, count * sizeof *list);
    node->gpu[gpu].processes[kind] = count;
    return finish(node, true);
}

EXPORT void control_event(struct node *node, uint32_t gpu, uint64_t type, uint64_t data, uint32_t gpu_instance,
                          uint32_t compute_instance)
{
    if (gpu >= MAX_GPUS)
        return;
    node_lock(node);
    node->event[node->events++ % MAX_EVENTS] = (struct event){gpu, gpu_instance, compute_instance, 0, type, data};
    finish(node, true);
}

/* A rule's id, 0 when there is no room. */
EXPORT uint32_t control_rule(struct node *node, uint32_t function, uint32_t gpu, uint32_t answer, uint32_t hangs,
                             uint64_t hang_ns)
{
    uint32_t id = 0;
    node_lock(node);
    for (uint32_t i = 0; i < MAX_RULES && !id; i++)
        if (!node->rule[i].id) {
            id = ++node->next_rule;
            node->rule[i] = (struct rule){id, function, gpu, answer, hangs, 0, hang_ns};
            node->rules++;
        }
    finish(node, true);
    return id;
}

EXPORT bool control_unrule(struct node *node, uint32_t id)
{
    bool found = false;
    node_lock(node);
    for (uint32_t i = 0; i < MAX_RULES && !found && id; i++)
        if (node->rule[i].id == id) {
            node->rule[i].id = 0;
            node->rules--;
            found = true;
        }
    return finish(node, found);
}

/* Every rule. */
EXPORT void control_unrule_all(struct node *node)
{
    node_lock(node);
    for (uint32_t i = 0; i < MAX_RULES; i++)
        node->rule[i].id = 0;
    node->rules = 0;
    finish(node, true);
}

EXPORT void control_driver(struct node *node, uint32_t loaded, uint32_t answer)
{
    node_lock(node);
    if (node->driver_loaded && !loaded)
        node->driver_generation++;
    node->driver_loaded = loaded;
    node->driver_answer = answer;
    finish(node, true);
}

EXPORT uint64_t control_now(struct node *node)
{
    node_lock(node);
    uint64_t now = node_now(node);
    node_unlock(node);
    return now;
}

EXPORT void control_advance(struct node *node, uint64_t ns)
{
    node_lock(node);
    node->clock += ns;
    finish(node, true);
}

/* The clock goes on from where it is, by itself or when told. */
EXPORT void control_real_clock(struct node *node, uint32_t real)
{
    node_lock(node);
    uint64_t now = node_now(node);
    node->clock = 0;
    node->clock_is_real = real;
    node->clock = now - (real ? node_now(node) : 0);
    finish(node, true);
}

/* Calls of a function: on one GPU, on none (MAX_GPUS), altogether (ANY). */
EXPORT uint64_t control_calls(struct node *node, uint32_t function, uint32_t gpu)
{
    uint64_t calls = 0;
    if (function >= F_COUNT)
        return 0;
    node_lock(node);
    for (uint32_t i = 0; i <= MAX_GPUS; i++)
        if (gpu == ANY || gpu == i)
            calls += node->calls[function][i];
    node_unlock(node);
    return calls;
}

EXPORT uint32_t control_inside(struct node *node, uint32_t function)
{
    return function < F_COUNT ? __atomic_load_n(&node->inside[function], __ATOMIC_ACQUIRE) : 0;
}

/* The `index`th thread that ever called: its ids and its calls of every function. False behind the last. */
EXPORT bool control_thread(struct node *node, uint32_t index, int32_t *pid, int32_t *tid, uint32_t *calls)
{
    node_lock(node);
    bool there = index < node->threads;
    if (there) {
        *pid = node->thread[index].pid;
        *tid = node->thread[index].tid;
        memcpy(calls, node->thread[index].calls, sizeof node->thread[index].calls);
    }
    node_unlock(node);
    return there;
}

/* Calls of threads beyond MAX_THREADS: counted by function, but by nobody. */
EXPORT uint32_t control_threads_lost(struct node *node)
{
    return node->threads_lost;
}

EXPORT void control_forget_calls(struct node *node)
{
    node_lock(node);
    memset(node->calls, 0, sizeof node->calls);
    for (uint32_t i = 0; i < node->threads; i++)
        memset(node->thread[i].calls, 0, sizeof node->thread[i].calls);
    node->threads_lost = 0;
    finish(node, true);
}
