//! How much memory processes took, and how much this machine has, as Linux says it. On other systems there is
//! no answer.

/// The most memory that this process has held at a time, in bytes: its peak resident set, as Linux counts
/// it (`VmHWM` in proc(5)).
pub fn peak() -> Option<u64> {
    peak_of_process(std::process::id())
}

/// The same of the process `id`.
pub fn peak_of_process(id: u32) -> Option<u64> {
    peak_of(&std::fs::read_to_string(format!("/proc/{id}/status")).ok()?)
}

/// The memory that this process holds now, in bytes: its resident set (`VmRSS`).
pub fn resident() -> Option<u64> {
    resident_of_process(std::process::id())
}

/// The same of the process `id`.
pub fn resident_of_process(id: u32) -> Option<u64> {
    kibibytes(
        &std::fs::read_to_string(format!("/proc/{id}/status")).ok()?,
        "VmRSS:",
    )
}

/// Lets the peak of the process `id` count from now on, where the system can: a Linux whose proc(5) has
/// `clear_refs`. Elsewhere it goes on counting from the start.
pub fn forget_peak(id: u32) {
    // Failing is no more than not being able to.
    let _ = std::fs::write(format!("/proc/{id}/clear_refs"), "5");
}

/// The memory of this machine, in bytes, or what its control group leaves of it.
pub fn in_all() -> Option<u64> {
    let machine = kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    // "max" is no number, and no limit.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok());
    Some(limit.unwrap_or(machine).min(machine))
}

fn peak_of(status: &str) -> Option<u64> {
    kibibytes(status, "VmHWM:")
}

/// The line of `text` that begins with `name`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes() {
        let status = "Name:\tlacuna\nVmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(peak_of(status), Some(2 << 20));
        for none in [
            "",
            "VmPeak:\t 9000 kB\n",
            "VmHWM:\t much kB\n",
            "VmHWM:\t 18446744073709551615 kB\n",
        ] {
            assert_eq!(peak_of(none), None, "{none:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_some() {
        assert!(in_all().unwrap() > 16 << 20);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_a_peak() {
        // Written, or its pages would not count.
        let held = vec![1u8; 32 << 20];
        let len = held.len() as u64;
        assert!(peak().unwrap() >= len && resident().unwrap() >= len);
        drop(std::hint::black_box(held));
    }
}
