//! How much memory this machine has.

/// Bytes of memory that this process may have: the machine's, or less where its control group says so (Linux).
/// None on other systems.
pub fn total() -> Option<u64> {
    let machine = of_machine(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max");
    let group = group.ok().and_then(|text| text.trim().parse().ok());
    Some(group.map_or(machine, |group: u64| group.min(machine)))
}

/// Reads `MemTotal` of proc(5)'s meminfo.
fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_bytes() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:         100 kB\n";
        assert_eq!(of_machine(meminfo), Some(16 << 20));
        for none in ["", "MemFree: 100 kB\n", "MemTotal: much kB\n"] {
            assert_eq!(of_machine(none), None, "{none:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_some() {
        assert!(total().unwrap() > 16 << 20);
    }
}
