"""The bounded hash table of table.h. C declarations only."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "table.h" nogil:
    const uint32_t FT_NONE

    cdef struct ft_table:
        uint32_t key_size
        uint32_t capacity
        uint32_t used
        uint32_t count
        uint64_t refused

    void *ft_table_at(const ft_table *table, uint32_t number)
    bint ft_table_lives(const ft_table *table, uint32_t number)
    int ft_table_init(ft_table *table, size_t stride, uint32_t key_size, uint32_t capacity)
    void ft_table_free(ft_table *table)
    uint32_t ft_table_find(const ft_table *table, const void *key)
    void ft_table_remove(ft_table *table, uint32_t number)
