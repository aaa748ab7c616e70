"""The part of libbpf (1.1 and later) that fabrictap uses. C declarations only."""

from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef extern from "<bpf/btf.h>" nogil:
    cdef struct btf:
        pass


cdef extern from "<bpf/libbpf.h>" nogil:
    cdef struct bpf_object:
        pass
    cdef struct bpf_program:
        pass
    cdef struct bpf_map:
        pass
    cdef struct bpf_link:
        pass
    cdef struct ring_buffer:
        pass
    ctypedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size) noexcept

    cdef struct bpf_uprobe_opts:
        size_t sz
        bint retprobe

    cdef struct bpf_object_open_opts:
        size_t sz
        const char *btf_custom_path

    int libbpf_num_possible_cpus()
    int libbpf_probe_bpf_helper(int prog_type, int helper_id, const void *opts)

    bpf_object *bpf_object__open_file(const char *path, const void *opts)
    int bpf_object__load(bpf_object *obj)
    void bpf_object__close(bpf_object *obj)
    bpf_program *bpf_object__next_program(const bpf_object *obj, bpf_program *prog)
    bpf_program *bpf_object__find_program_by_name(const bpf_object *obj, const char *name)
    bpf_map *bpf_object__find_map_by_name(const bpf_object *obj, const char *name)
    bpf_map *bpf_object__next_map(const bpf_object *obj, const bpf_map *map)
    btf *bpf_object__btf(const bpf_object *obj)

    const char *bpf_program__name(const bpf_program *prog)
    const char *bpf_program__section_name(const bpf_program *prog)
    int bpf_program__set_autoload(bpf_program *prog, bint autoload)
    int bpf_program__set_expected_attach_type(bpf_program *prog, int type)
    bint bpf_program__autoload(const bpf_program *prog)
    int bpf_program__fd(const bpf_program *prog)
    bpf_link *bpf_program__attach(const bpf_program *prog)
    bpf_link *bpf_program__attach_uprobe_opts(
        const bpf_program *prog, int pid, const char *binary_path, size_t func_offset, const bpf_uprobe_opts *opts
    )
    int bpf_link__destroy(bpf_link *link)

    const char *bpf_map__name(const bpf_map *map)
    int bpf_map__fd(const bpf_map *map)
    uint32_t bpf_map__key_size(const bpf_map *map)
    uint32_t bpf_map__value_size(const bpf_map *map)
    uint32_t bpf_map__max_entries(const bpf_map *map)
    int bpf_map__type(const bpf_map *map)
    int bpf_map__set_max_entries(bpf_map *map, uint32_t max_entries)
    void *bpf_map__initial_value(bpf_map *map, size_t *psize)

    ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn sample_cb, void *ctx, const void *opts)
    void ring_buffer__free(ring_buffer *rb)
    int ring_buffer__poll(ring_buffer *rb, int timeout_ms)
    int ring_buffer__consume(ring_buffer *rb)


cdef extern from "<bpf/bpf.h>" nogil:
    cdef struct bpf_map_batch_opts:
        pass

    int bpf_map_lookup_batch(
        int fd, void *in_batch, void *out_batch, void *keys, void *values, uint32_t *count, const void *opts
    )
    int bpf_map_get_next_key(int fd, const void *key, void *next_key)
    int bpf_map_lookup_elem(int fd, const void *key, void *value)
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)
    int bpf_map_delete_elem(int fd, const void *key)
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *length)


cdef extern from "<bpf/btf.h>" nogil:
    cdef struct btf_type:
        uint32_t name_off
        uint32_t size
    cdef struct btf_var_secinfo:
        uint32_t type
        uint32_t offset
        uint32_t size

    btf *btf__load_vmlinux_btf()
    btf *btf__load_module_btf(const char *module_name, btf *vmlinux_btf)
    void btf__free(btf *btf)
    int32_t btf__find_by_name_kind(const btf *btf, const char *type_name, uint32_t kind)
    const btf_type *btf__type_by_id(const btf *btf, uint32_t id)
    const char *btf__name_by_offset(const btf *btf, uint32_t offset)
    btf_var_secinfo *btf_var_secinfos(const btf_type *t)
    unsigned short btf_vlen(const btf_type *t)


cdef extern from "<linux/btf.h>" nogil:
    const uint32_t BTF_KIND_STRUCT
    const uint32_t BTF_KIND_FUNC
    const uint32_t BTF_KIND_DATASEC


cdef extern from "<linux/bpf.h>" nogil:
    cdef struct bpf_prog_info:
        uint64_t run_time_ns
        uint64_t run_cnt

    const int BPF_PROG_TYPE_KPROBE
    const int BPF_FUNC_loop
    const int BPF_MAP_TYPE_PERCPU_HASH
    const int BPF_MAP_TYPE_PERCPU_ARRAY
