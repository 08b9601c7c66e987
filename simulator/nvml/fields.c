/* Field values: the batched interface, and which id means what under which driver. */
#include "internal.h"

#include <limits.h>
#include <string.h>

/* Where the driver keeps SW_THERM, HW_THERM and HW_POWER_BRAKE, in that order: 269 from 580.95, 251 from R575
 * to there, nowhere before. The later header gave 251-253 to power smoothing. */
static unsigned int clocks_event_base(void) {
    if (sim_driver_at_least(580, 95))
        return 269;
    return sim_driver_at_least(575, 0) ? 251 : 0;
}

/* One greater than the largest id each driver knows; above R570 the exact ends are unverified. */
static unsigned int first_unknown_id(void) {
    if (sim_driver_at_least(590, 0))
        return NVML_FI_MAX;
    if (sim_driver_at_least(580, 95))
        return 275;
    if (sim_driver_at_least(575, 0))
        return 272;
    return sim_driver_at_least(570, 0) ? 251 : 230;
}

static nvmlReturn_t u32(nvmlFieldValue_t *out, uint64_t value) {
    out->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    out->value.ullVal = 0;
    out->value.uiVal = (unsigned int)value;
    return NVML_SUCCESS;
}

static nvmlReturn_t u64(nvmlFieldValue_t *out, uint64_t value) {
    out->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    out->value.ullVal = value;
    return NVML_SUCCESS;
}

static nvmlReturn_t s32(nvmlFieldValue_t *out, int value) {
    out->valueType = NVML_VALUE_TYPE_SIGNED_INT;
    out->value.ullVal = 0;
    out->value.siVal = value;
    return NVML_SUCCESS;
}

static nvmlReturn_t real(nvmlFieldValue_t *out, double value) {
    out->valueType = NVML_VALUE_TYPE_DOUBLE;
    out->value.dVal = value;
    return NVML_SUCCESS;
}

/* Ids 7-17 are volatile and 18-28 aggregate counters by location, in pairs of single and double bit. */
static nvmlReturn_t ecc_by_location(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    static const unsigned char locations[] = {
        NVML_MEMORY_LOCATION_L1_CACHE,      NVML_MEMORY_LOCATION_L2_CACHE,       NVML_MEMORY_LOCATION_DRAM,
        NVML_MEMORY_LOCATION_REGISTER_FILE, NVML_MEMORY_LOCATION_TEXTURE_MEMORY,
    };
    unsigned int lifetime = id >= NVML_FI_DEV_ECC_SBE_AGG_L1;
    unsigned int place = id - (lifetime ? NVML_FI_DEV_ECC_SBE_AGG_L1 : NVML_FI_DEV_ECC_SBE_VOL_L1);
    if (place == 10) /* CBU has double bit errors only */
        return u64(out, sim_ecc(gpu, lifetime, 1, NVML_MEMORY_LOCATION_CBU));
    return u64(out, sim_ecc(gpu, lifetime, place % 2, locations[place / 2]));
}

static nvmlReturn_t ecc(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    switch (id) {
    case NVML_FI_DEV_ECC_SBE_VOL_TOTAL: return u64(out, sim_ecc_total(gpu, 0, 0));
    case NVML_FI_DEV_ECC_DBE_VOL_TOTAL: return u64(out, sim_ecc_total(gpu, 0, 1));
    case NVML_FI_DEV_ECC_SBE_AGG_TOTAL: return u64(out, sim_ecc_total(gpu, 1, 0));
    case NVML_FI_DEV_ECC_DBE_AGG_TOTAL: return u64(out, sim_ecc_total(gpu, 1, 1));
    default: return ecc_by_location(gpu, id, out);
    }
}

/* Counters of one link by scopeId, or of all links with UINT_MAX where the header allows it. */
static nvmlReturn_t link_counter(sim_gpu_ref gpu, size_t offset, int summable, unsigned int scale,
                                 nvmlFieldValue_t *out) {
    if (out->scopeId == UINT_MAX && summable)
        return u64(out, sim_link_sum(gpu, offset) * scale);
    CHECK(out->scopeId < gpu->nvlink_count);
    const volatile char *link = (const volatile char *)&gpu->links[out->scopeId];
    return u64(out, *(const volatile uint64_t *)(link + offset) * scale);
}
#define COUNTER(feature, member, summable, scale) \
    NEEDS(feature);                               \
    return link_counter(gpu, offsetof(sim_link, member), summable, scale, out)

#define BIT_ERROR_RATE(member)                   \
    NEEDS(NVLINK5_COUNTERS);                     \
    CHECK(out->scopeId < gpu->nvlink_count);     \
    return u32(out, gpu->links[out->scopeId].member)

/* Which link an id of the runs L0-L5 and L6-L11 counts, or -1. */
static int link_of(unsigned int id, unsigned int first, unsigned int seventh) {
    if (id >= first && id < first + 6)
        return (int)(id - first);
    return id >= seventh && id < seventh + 6 ? (int)(id - seventh) + 6 : -1;
}

/* The error counters of 12 links at most, an id each, that 161-163 replaced. */
static nvmlReturn_t legacy_errors(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    static const struct {
        unsigned int first, seventh;
        size_t offset;
    } runs[] = {
        {NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L0, NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L6,
         offsetof(sim_link, crc_errors)},
        {NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L0, NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L6,
         offsetof(sim_link, replay_errors)},
        {NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L0, NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L6,
         offsetof(sim_link, recovery_errors)},
    };
    NEEDS(NVLINK_LEGACY_ERRORS);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        int link = link_of(id, runs[i].first, runs[i].seventh);
        if (link >= 0) {
            CHECK((unsigned int)link < gpu->nvlink_count);
            return u64(out, *(const volatile uint64_t *)((const volatile char *)&gpu->links[link] + runs[i].offset));
        }
    }
    return NVML_ERROR_NOT_SUPPORTED;
}

static nvmlReturn_t nvlink(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    NEEDS(NVLINK);
    if (id >= NVML_FI_DEV_NVLINK_COUNT_FEC_HISTORY_0 && id <= NVML_FI_DEV_NVLINK_COUNT_FEC_HISTORY_15) {
        NEEDS(NVLINK5_COUNTERS);
        CHECK(out->scopeId < gpu->nvlink_count);
        return u64(out, gpu->links[out->scopeId].fec_corrected[id - NVML_FI_DEV_NVLINK_COUNT_FEC_HISTORY_0]);
    }
    switch (id) {
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: COUNTER(NVLINK_COUNTERS_KIB, data_tx_kib, 1, 1);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: COUNTER(NVLINK_COUNTERS_KIB, data_rx_kib, 1, 1);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX: COUNTER(NVLINK_COUNTERS_KIB, raw_tx_kib, 1, 1);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX: COUNTER(NVLINK_COUNTERS_KIB, raw_rx_kib, 1, 1);
    case NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY: COUNTER(NVLINK_DL_ERRORS, replay_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY: COUNTER(NVLINK_DL_ERRORS, recovery_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_ERROR_DL_CRC: COUNTER(NVLINK_DL_ERRORS, crc_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES: COUNTER(NVLINK5_COUNTERS, raw_tx_kib, 1, 1024);
    case NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES: COUNTER(NVLINK5_COUNTERS, raw_rx_kib, 1, 1024);
    case NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS: COUNTER(NVLINK5_COUNTERS, receive_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS:
        COUNTER(NVLINK5_COUNTERS, recovery_successful, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS: COUNTER(NVLINK5_COUNTERS, recovery_failed, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS: COUNTER(NVLINK5_COUNTERS, effective_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS: COUNTER(NVLINK5_COUNTERS, symbol_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS:
        NEEDS(NVLINK5_COUNTERS);
        CHECK(out->scopeId < gpu->nvlink_count);
        return u64(out, gpu->links[out->scopeId].recovery_successful + gpu->links[out->scopeId].recovery_failed);
    case NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS: COUNTER(NVLINK5_COUNTERS, malformed_packets, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS: COUNTER(NVLINK5_COUNTERS, buffer_overruns, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_RCV_REMOTE_ERRORS: COUNTER(NVLINK5_COUNTERS, remote_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_RCV_GENERAL_ERRORS: COUNTER(NVLINK5_COUNTERS, general_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS: COUNTER(NVLINK5_COUNTERS, integrity_errors, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_XMIT_DISCARDS: COUNTER(NVLINK5_COUNTERS, discarded_packets, 0, 1);
    case NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER: BIT_ERROR_RATE(effective_ber);
    case NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER: BIT_ERROR_RATE(symbol_ber);
    case NVML_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL:
        NEEDS(NVLINK_ECC);
        return u64(out, sim_link_sum(gpu, offsetof(sim_link, ecc_errors)));
    case NVML_FI_DEV_NVLINK_LINK_COUNT: return u32(out, gpu->nvlink_count);
    case NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: return u32(out, gpu->nvlink_speed_mbps);
    case NVML_FI_DEV_NVLINK_GET_SPEED:
        CHECK(out->scopeId < gpu->nvlink_count);
        return u32(out, gpu->links[out->scopeId].state == 1 ? gpu->nvlink_speed_mbps : 0);
    case NVML_FI_DEV_NVLINK_GET_STATE:
        CHECK(out->scopeId < gpu->nvlink_count);
        return u32(out, gpu->links[out->scopeId].state);
    case NVML_FI_DEV_NVLINK_GET_VERSION:
        CHECK(out->scopeId < gpu->nvlink_count);
        return u32(out, gpu->nvlink_version);
    case NVML_FI_DEV_NVLINK_REMOTE_NVLINK_ID:
        CHECK(out->scopeId < gpu->nvlink_count);
        return u32(out, gpu->links[out->scopeId].remote_index);
    default: return legacy_errors(gpu, id, out);
    }
}

static nvmlReturn_t power(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    if (out->scopeId != 0) /* module scope is for NVIDIA CPUs, base scope for later parts */
        return NVML_ERROR_NOT_SUPPORTED;
    switch (id) {
    case NVML_FI_DEV_POWER_AVERAGE: NEEDS(POWER_AVERAGE); return u32(out, gpu->power_average_mw);
    case NVML_FI_DEV_POWER_INSTANT: return u32(out, gpu->power_instant_mw);
    case NVML_FI_DEV_POWER_MIN_LIMIT: return u32(out, gpu->power_min_limit_mw);
    case NVML_FI_DEV_POWER_MAX_LIMIT: return u32(out, gpu->power_max_limit_mw);
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT: return u32(out, gpu->power_default_limit_mw);
    case NVML_FI_DEV_POWER_CURRENT_LIMIT: return u32(out, gpu->power_limit_mw);
    case NVML_FI_DEV_POWER_REQUESTED_LIMIT: return u32(out, gpu->power_requested_limit_mw);
    default: NEEDS(ENERGY); return u64(out, gpu->energy_mj);
    }
}

static nvmlReturn_t clocks_event(sim_gpu_ref gpu, unsigned int which, nvmlFieldValue_t *out) {
    NEEDS(VIOLATION_COUNTERS);
    return u64(out, which == 0   ? gpu->throttle_sw_thermal_ns
                    : which == 1 ? gpu->throttle_hw_thermal_ns
                                 : gpu->throttle_power_brake_ns);
}

static nvmlReturn_t violation(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    NEEDS(VIOLATION_COUNTERS);
    switch (id) {
    case NVML_FI_DEV_PERF_POLICY_POWER: return u64(out, gpu->throttle_sw_power_ns);
    case NVML_FI_DEV_PERF_POLICY_THERMAL: return u64(out, gpu->throttle_thermal_ns);
    case NVML_FI_DEV_PERF_POLICY_SYNC_BOOST: return u64(out, gpu->throttle_sync_boost_ns);
    case NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT: return u64(out, gpu->throttle_board_limit_ns);
    case NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION: return u64(out, gpu->throttle_low_utilization_ns);
    case NVML_FI_DEV_PERF_POLICY_RELIABILITY: return u64(out, gpu->throttle_reliability_ns);
    case NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS: return u64(out, gpu->throttle_app_clocks_ns);
    default: return u64(out, gpu->throttle_base_clocks_ns);
    }
}

static nvmlReturn_t pcie(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    switch (id) {
    case NVML_FI_DEV_PCIE_REPLAY_COUNTER: return u32(out, gpu->pcie_replay_count);
    case NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER: return u32(out, gpu->pcie_replay_rollover_count);
    case NVML_FI_DEV_PCIE_COUNT_TX_BYTES: NEEDS(PCIE_BYTES); return u64(out, gpu->pcie_tx_bytes);
    case NVML_FI_DEV_PCIE_COUNT_RX_BYTES: NEEDS(PCIE_BYTES); return u64(out, gpu->pcie_rx_bytes);
    default: break;
    }
    NEEDS(PCIE_ERROR_COUNTERS);
    switch (id) {
    case NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER: return u32(out, gpu->pcie_l0_to_recovery_count);
    case NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS: return u32(out, gpu->pcie_correctable_errors);
    case NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR: return u32(out, gpu->pcie_non_fatal_errors);
    case NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR: return u32(out, gpu->pcie_fatal_errors);
    case NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED: return u32(out, gpu->pcie_naks_received);
    case NVML_FI_DEV_PCIE_COUNT_RECEIVER_ERROR: return u32(out, gpu->pcie_receiver_errors);
    case NVML_FI_DEV_PCIE_COUNT_BAD_TLP: return u32(out, gpu->pcie_bad_tlps);
    case NVML_FI_DEV_PCIE_COUNT_NAKS_SENT: return u32(out, gpu->pcie_naks_sent);
    case NVML_FI_DEV_PCIE_COUNT_BAD_DLLP: return u32(out, gpu->pcie_bad_dllps);
    case NVML_FI_DEV_PCIE_COUNT_UNSUPPORTED_REQ: return u32(out, gpu->pcie_unsupported_requests);
    case NVML_FI_DEV_PCIE_COUNT_LCRC_ERROR: return u32(out, gpu->pcie_lcrc_errors);
    default: return u32(out, gpu->pcie_lane_errors);
    }
}

static nvmlReturn_t rows_and_pages(sim_gpu_ref gpu, unsigned int id, nvmlFieldValue_t *out) {
    switch (id) {
    case NVML_FI_DEV_REMAPPED_COR: NEEDS(ROW_REMAP); return u32(out, gpu->remapped_corrected);
    case NVML_FI_DEV_REMAPPED_UNC: NEEDS(ROW_REMAP); return u32(out, gpu->remapped_uncorrected);
    case NVML_FI_DEV_REMAPPED_PENDING: NEEDS(ROW_REMAP); return u32(out, gpu->remap_pending);
    case NVML_FI_DEV_REMAPPED_FAILURE: NEEDS(ROW_REMAP); return u32(out, gpu->remap_failure);
    default: NEEDS(RETIRED_PAGES); break;
    }
    switch (id) {
    case NVML_FI_DEV_RETIRED_SBE: return u32(out, gpu->retired_single_bit);
    case NVML_FI_DEV_RETIRED_DBE: return u32(out, gpu->retired_double_bit);
    default: return u32(out, gpu->retired_pending);
    }
}

static nvmlReturn_t read_field(sim_gpu_ref gpu, nvmlFieldValue_t *out) {
    unsigned int id = out->fieldId, base = clocks_event_base();
    if (id == 0 || id >= first_unknown_id())
        return NVML_ERROR_INVALID_ARGUMENT;
    if (base && id >= base && id < base + 3)
        return clocks_event(gpu, id - base, out);
    if (id >= NVML_FI_DEV_PERF_POLICY_POWER && id <= NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS)
        return violation(gpu, id, out);
    if (id >= NVML_FI_DEV_POWER_AVERAGE && id <= NVML_FI_DEV_POWER_REQUESTED_LIMIT)
        return power(gpu, id, out);
    if ((id >= NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS && id <= NVML_FI_DEV_PCIE_COUNT_LANE_ERROR) ||
        id == NVML_FI_DEV_PCIE_COUNT_TX_BYTES || id == NVML_FI_DEV_PCIE_COUNT_RX_BYTES ||
        id == NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER || id == NVML_FI_DEV_PCIE_REPLAY_COUNTER ||
        id == NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER)
        return pcie(gpu, id, out);
    switch (id) {
    case NVML_FI_DEV_ECC_CURRENT:
    case NVML_FI_DEV_ECC_PENDING: return u32(out, gpu->ecc_enabled);
    case NVML_FI_DEV_RETIRED_SBE:
    case NVML_FI_DEV_RETIRED_DBE:
    case NVML_FI_DEV_RETIRED_PENDING:
    case NVML_FI_DEV_REMAPPED_COR:
    case NVML_FI_DEV_REMAPPED_UNC:
    case NVML_FI_DEV_REMAPPED_PENDING:
    case NVML_FI_DEV_REMAPPED_FAILURE: return rows_and_pages(gpu, id, out);
    case NVML_FI_DEV_MEMORY_TEMP:
        NEEDS(MEMORY_TEMPERATURE);
        return u32(out, (uint64_t)sim_temperature(gpu->memory_temperature_celsius));
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: NEEDS(ENERGY); return u64(out, gpu->energy_mj);
    case NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: NEEDS(RECOVERY_ACTION); return u32(out, gpu->recovery_action);
    case NVML_FI_DEV_GPU_TEMP: return real(out, gpu->temperature_celsius);
    /* T.Limit thresholds count down to the software slowdown point. */
    case NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT:
        NEEDS(TLIMIT);
        return s32(out, gpu->gpu_max_celsius - gpu->shutdown_celsius);
    case NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT:
        NEEDS(TLIMIT);
        return s32(out, gpu->gpu_max_celsius - gpu->slowdown_celsius);
    case NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT:
    case NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: NEEDS(TLIMIT); return s32(out, 0);
    /* Reached only under drivers where these are not clock event reasons. */
    case NVML_FI_PWR_SMOOTHING_ENABLED:
    case NVML_FI_PWR_SMOOTHING_PRIV_LVL:
    case NVML_FI_PWR_SMOOTHING_IMM_RAMP_DOWN_ENABLED: NEEDS(POWER_SMOOTHING); return u32(out, 0);
    case NVML_FI_DEV_C2C_LINK_COUNT: NEEDS(C2C); return u32(out, 0);
    case NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED: NEEDS(MIG); return u32(out, 1);
    default: return nvlink(gpu, id, out);
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    uint64_t start = sim_monotonic_ns();
    ENTER(device, values);
    CHECK(count > 0);
    long long timestamp = (long long)sim_realtime_us();
    for (int i = 0; i < count; i++) {
        unsigned int id = values[i].fieldId;
        if (!gpu->ecc_enabled && id >= NVML_FI_DEV_ECC_SBE_VOL_TOTAL && id <= NVML_FI_DEV_ECC_DBE_AGG_CBU) {
            values[i].timestamp = 0; /* with ECC off the rest of the entry is left as the caller had it */
            continue;
        }
        values[i].timestamp = timestamp;
        values[i].nvmlReturn = id >= NVML_FI_DEV_ECC_SBE_VOL_TOTAL && id <= NVML_FI_DEV_ECC_DBE_AGG_CBU
                                   ? ecc(gpu, id, &values[i])
                                   : read_field(gpu, &values[i]);
    }
    long long each = (long long)((sim_monotonic_ns() - start) / 1000u) / count;
    for (int i = 0; i < count; i++)
        values[i].latencyUsec = each; /* nvml.h: may be averaged over the fields of one driver call */
    return NVML_SUCCESS;
}
