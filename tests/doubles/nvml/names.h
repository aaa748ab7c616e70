/* The names by which driver.py and the profiles speak of functions and numbers. One list each, in C alone. */
#pragma once

/* Entry points that count their calls and obey rules (errors, hangs). */
#define FUNCTIONS(X) \
    X(nvmlInit_v2) X(nvmlInitWithFlags) X(nvmlShutdown) X(nvmlErrorString) X(nvmlSystemGetDriverVersion) \
    X(nvmlSystemGetNVMLVersion) X(nvmlSystemGetCudaDriverVersion) X(nvmlSystemGetCudaDriverVersion_v2) \
    X(nvmlDeviceGetCount_v2) X(nvmlDeviceGetHandleByIndex_v2) X(nvmlDeviceGetHandleByUUID) \
    X(nvmlDeviceGetHandleByPciBusId_v2) X(nvmlDeviceGetName) X(nvmlDeviceGetUUID) X(nvmlDeviceGetSerial) \
    X(nvmlDeviceGetVbiosVersion) \
    X(nvmlDeviceGetPciInfo_v3) X(nvmlDeviceGetIndex) X(nvmlDeviceGetMinorNumber) X(nvmlDeviceGetBrand) \
    X(nvmlDeviceGetArchitecture) X(nvmlDeviceGetCudaComputeCapability) X(nvmlDeviceGetNumaNodeId) \
    X(nvmlDeviceGetMemoryAffinity) X(nvmlDeviceGetTopologyCommonAncestor) X(nvmlDeviceGetMemoryInfo) \
    X(nvmlDeviceGetMemoryInfo_v2) X(nvmlDeviceGetBAR1MemoryInfo) X(nvmlDeviceGetUtilizationRates) \
    X(nvmlDeviceGetEccMode) X(nvmlDeviceGetTotalEccErrors) X(nvmlDeviceGetMemoryErrorCounter) \
    X(nvmlDeviceGetRemappedRows) X(nvmlDeviceGetRetiredPages) X(nvmlDeviceGetRetiredPages_v2) \
    X(nvmlDeviceGetCurrentClocksEventReasons) X(nvmlDeviceGetCurrentClocksThrottleReasons) \
    X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetMaxClockInfo) X(nvmlDeviceGetPowerUsage) \
    X(nvmlDeviceGetEnforcedPowerLimit) X(nvmlDeviceGetTotalEnergyConsumption) X(nvmlDeviceGetTemperature) \
    X(nvmlDeviceGetTemperatureV) X(nvmlDeviceGetPerformanceState) X(nvmlDeviceGetComputeMode) \
    X(nvmlDeviceGetPersistenceMode) X(nvmlDeviceGetPcieThroughput) X(nvmlDeviceGetPcieReplayCounter) \
    X(nvmlDeviceGetCurrPcieLinkGeneration) X(nvmlDeviceGetCurrPcieLinkWidth) \
    X(nvmlDeviceGetMaxPcieLinkGeneration) X(nvmlDeviceGetMaxPcieLinkWidth) X(nvmlDeviceGetNvLinkState) \
    X(nvmlDeviceGetNvLinkVersion) X(nvmlDeviceGetNvLinkCapability) X(nvmlDeviceGetNvLinkErrorCounter) \
    X(nvmlDeviceGetNvLinkRemotePciInfo_v2) X(nvmlDeviceGetNvLinkRemoteDeviceType) X(nvmlDeviceGetFieldValues) \
    X(nvmlGpmQueryDeviceSupport) X(nvmlGpmSampleAlloc) X(nvmlGpmSampleFree) X(nvmlGpmSampleGet) \
    X(nvmlGpmMigSampleGet) X(nvmlGpmMetricsGet) X(nvmlDeviceGetGpuFabricInfo) X(nvmlDeviceGetGpuFabricInfoV) \
    X(nvmlDeviceGetMigMode) X(nvmlDeviceGetMaxMigDeviceCount) X(nvmlDeviceGetMigDeviceHandleByIndex) \
    X(nvmlDeviceIsMigDeviceHandle) X(nvmlDeviceGetDeviceHandleFromMigDeviceHandle) X(nvmlDeviceGetGpuInstanceId) \
    X(nvmlDeviceGetComputeInstanceId) X(nvmlDeviceGetAttributes_v2) X(nvmlSystemGetConfComputeState) \
    X(nvmlSystemGetConfComputeSettings) X(nvmlDeviceGetComputeRunningProcesses_v2) \
    X(nvmlDeviceGetComputeRunningProcesses_v3) X(nvmlDeviceGetGraphicsRunningProcesses_v2) \
    X(nvmlDeviceGetGraphicsRunningProcesses_v3) X(nvmlDeviceGetMPSComputeRunningProcesses_v2) \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v3) X(nvmlDeviceGetSupportedEventTypes) X(nvmlEventSetCreate) \
    X(nvmlDeviceRegisterEvents) X(nvmlEventSetWait_v2) X(nvmlEventSetFree)

/* Numbers of a GPU that are no field id. One that a profile does not name is NOT_SUPPORTED. */
#define VALUES(X) \
    X(lost) X(minor_number) X(brand) X(architecture) X(compute_capability_major) X(compute_capability_minor) \
    X(numa_node) X(pci_domain) X(pci_bus) X(pci_device) X(pci_device_id) X(pci_subsystem_id) \
    X(memory_total_bytes) X(memory_reserved_bytes) X(memory_used_bytes) X(bar1_total_bytes) X(bar1_used_bytes) \
    X(utilization_gpu_percent) X(utilization_memory_percent) X(ecc_mode_current) X(ecc_mode_pending) \
    X(ecc_corrected_volatile) X(ecc_corrected_aggregate) X(ecc_uncorrected_volatile) \
    X(ecc_uncorrected_aggregate) X(clocks_event_reasons) X(clock_graphics_mhz) X(clock_sm_mhz) \
    X(clock_memory_mhz) X(clock_video_mhz) X(clock_graphics_max_mhz) X(clock_sm_max_mhz) \
    X(clock_memory_max_mhz) X(clock_video_max_mhz) X(power_mw) X(power_limit_mw) X(energy_mj) \
    X(temperature_celsius) X(performance_state) X(compute_mode) X(persistence_mode) X(pcie_tx_kb_per_s) \
    X(pcie_rx_kb_per_s) X(pcie_generation) X(pcie_width) X(pcie_generation_max) X(pcie_width_max) \
    X(nvlink_links) X(gpm_supported) X(gpm_cumulative) X(fabric_state) X(fabric_status) X(fabric_clique) \
    X(fabric_health_mask) X(fabric_health_summary) X(mig_mode_current) X(mig_mode_pending) X(mig_max_devices) \
    X(supported_events)

/* Numbers of one NVLink that are no field id. */
#define LINK_VALUES(X) \
    X(remote_type) X(remote_domain) X(remote_bus) X(remote_device) X(remote_device_id) X(capabilities) \
    X(crc_data_errors) X(ecc_data_errors)

/* Numbers of one MIG instance. */
#define MIG_VALUES(X) \
    X(present) X(gpu_instance) X(compute_instance) X(multiprocessors) X(copy_engines) X(decoders) X(encoders) \
    X(jpeg_engines) X(ofa_engines) X(gpu_slices) X(compute_slices) X(memory_mib) X(memory_used_bytes) \
    X(graphics_util_millipercent) X(sm_util_millipercent) X(dram_util_millipercent)

/* Numbers of the node. */
#define NODE_VALUES(X) \
    X(cuda_version) X(confidential_environment) X(confidential_feature) X(confidential_devtools) \
    X(confidential_multi_gpu) X(field_limit) X(gpm_limit) X(pcie_sample_ms)

/* Texts of a GPU, and of the node. */
#define GPU_TEXTS(X) X(name) X(uuid) X(serial) X(vbios_version) X(cluster_uuid)
#define NODE_TEXTS(X) X(driver_version) X(nvml_version)
