# cython: language_level=3
# What ext/dcgm.pyx uses of libdcgm (dcgm_abi.h) and of the dynamic loader.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uintptr_t

cdef extern from "<dlfcn.h>" nogil:
    enum:
        RTLD_NOW
        RTLD_LOCAL
    void *dlopen(const char *path, int flags)
    void *dlsym(void *handle, const char *name)
    int dlclose(void *handle)
    char *dlerror()

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t most)

cdef extern from "dcgm_abi.h" nogil:
    enum:
        FT_DCGM_STRING
        FT_DCGM_INSTANCES
    const int64_t FT_DCGM_INT64_BLANK
    const double FT_DCGM_FP64_BLANK
    struct ft_dcgm_pair:
        uint32_t group
        uint32_t entity
    struct ft_dcgm_connect2:
        uint32_t version
        uint32_t persist
        uint32_t timeout_ms
        uint32_t is_unix
    struct ft_dcgm_connect3:
        uint32_t version
        uint32_t persist
        uint32_t timeout_ms
    struct ft_dcgm_value:
        uint32_t version
        uint32_t group
        uint32_t entity
        uint16_t field
        uint16_t type
        int32_t status
        int64_t time_us
        int64_t i64
        double dbl
        char str[256]
    struct ft_dcgm_instance:
        ft_dcgm_pair entity
        ft_dcgm_pair parent
        char gpu_uuid[128]
        uint32_t gpu_index
        uint32_t gpu_instance
        uint32_t compute_instance
        uint32_t profile
        uint32_t slices
    struct ft_dcgm_hierarchy:
        uint32_t version
        uint32_t count
        ft_dcgm_instance instances[448]
    struct ft_dcgm_build:
        uint32_t version
        char text[512]
    ctypedef int (*ft_dcgm_void)() noexcept
    ctypedef int (*ft_dcgm_handle)(uintptr_t) noexcept
    ctypedef int (*ft_dcgm_connect_2)(const char *, ft_dcgm_connect2 *, uintptr_t *) noexcept
    ctypedef int (*ft_dcgm_connect_3)(const char *, ft_dcgm_connect3 *, uintptr_t *) noexcept
    ctypedef int (*ft_dcgm_entities)(uintptr_t, uint32_t, uint32_t *, int *, uint32_t) noexcept
    ctypedef int (*ft_dcgm_group_create)(uintptr_t, uint32_t, const char *, uintptr_t *) noexcept
    ctypedef int (*ft_dcgm_group_add)(uintptr_t, uintptr_t, uint32_t, uint32_t) noexcept
    ctypedef int (*ft_dcgm_destroy)(uintptr_t, uintptr_t) noexcept
    ctypedef int (*ft_dcgm_fields_create)(uintptr_t, int, uint16_t *, const char *, uintptr_t *) noexcept
    ctypedef int (*ft_dcgm_watch)(uintptr_t, uintptr_t, uintptr_t, long long, double, int) noexcept
    ctypedef int (*ft_dcgm_unwatch)(uintptr_t, uintptr_t, uintptr_t) noexcept
    ctypedef int (*ft_dcgm_latest)(
        uintptr_t, ft_dcgm_pair *, uint32_t, uint16_t *, uint32_t, uint32_t, ft_dcgm_value *
    ) noexcept
    ctypedef int (*ft_dcgm_hierarchy_get)(uintptr_t, ft_dcgm_hierarchy *) noexcept
    ctypedef int (*ft_dcgm_build_get)(uintptr_t, ft_dcgm_build *) noexcept
    ctypedef const char *(*ft_dcgm_text)(int) noexcept

cdef extern from *:
    """
    #define FT_CONNECT2_VERSION FT_DCGM_VERSION(struct ft_dcgm_connect2, 2)
    #define FT_CONNECT3_VERSION FT_DCGM_VERSION(struct ft_dcgm_connect3, 1)
    #define FT_VALUE_VERSION FT_DCGM_VERSION(struct ft_dcgm_value, 2)
    #define FT_HIERARCHY_VERSION FT_DCGM_VERSION(struct ft_dcgm_hierarchy, 2)
    #define FT_BUILD_VERSION FT_DCGM_VERSION(struct ft_dcgm_build, 2)
    """
    const uint32_t FT_CONNECT2_VERSION
    const uint32_t FT_CONNECT3_VERSION
    const uint32_t FT_VALUE_VERSION
    const uint32_t FT_HIERARCHY_VERSION
    const uint32_t FT_BUILD_VERSION
