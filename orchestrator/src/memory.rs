//! How much memory processes took, and how much there is.

use sysinfo::System;

use crate::error::{Error, Result};

/// The most memory that this process has held at a time, in bytes: its peak resident set, as Linux counts
/// it (`VmHWM` in proc(5)). None on other systems.
pub fn peak() -> Option<u64> {
    peak_of_process(std::process::id())
}

/// The memory of this machine, in bytes, or what its control group leaves of it, as Linux says. None on other
/// systems.
pub fn in_all() -> Option<u64> {
    let machine = kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    // "max" is no number, and no limit.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok());
    Some(limit.unwrap_or(machine).min(machine))
}

/// The same of the process `id`.
pub fn peak_of_process(id: u32) -> Option<u64> {
    peak_of(&std::fs::read_to_string(format!("/proc/{id}/status")).ok()?)
}

/// Lets the peak of the process `id` count from now on, where the system can: a Linux whose proc(5) has
/// `clear_refs`. Elsewhere it goes on counting from the start.
pub fn forget_peak(id: u32) {
    // Failing is no more than not being able to.
    let _ = std::fs::write(format!("/proc/{id}/clear_refs"), "5");
}

/// Bytes that are free for this process: of the machine, and of the group that a container gives it, where
/// there is one. None where the system does not say.
pub fn available() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = system.available_memory().min(group.unwrap_or(u64::MAX));
    (free > 0).then_some(free)
}

/// Refuses what needs more than is free, where that is known.
///
/// # Errors
/// [`Error::Memory`], naming `what` it is that needs so much.
pub fn check_room(what: &'static str, needed: u64, free: Option<u64>) -> Result<()> {
    match free {
        Some(free) if needed > free => Err(Error::Memory { what, needed, free }),
        _ => Ok(()),
    }
}

fn peak_of(status: &str) -> Option<u64> {
    kibibytes(status, "VmHWM:")
}

/// The line of `text` that begins with `name`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes() {
        let status = "Name:\tlacuna\nVmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(peak_of(status), Some(2 << 20));
        for none in ["", "VmPeak:\t 9000 kB\n", "VmHWM:\t much kB\n"] {
            assert_eq!(peak_of(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        check_room("a map", 2_000_000_000, Some(2_000_000_000)).unwrap();
        check_room("a map", u64::MAX, None).unwrap();
        let error = check_room("a map", 3_440_000_000, Some(1_500_000_000)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a map takes about 3.4 GB of memory, 1.5 GB are free; free some, or have workers compute (`lacuna plan` compares)"
        );
    }

    #[test]
    fn there_is_memory_left() {
        let free = available().unwrap();
        assert!(free > 1 << 20, "{free}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_a_peak() {
        // Written, or its pages would not count.
        let held = vec![1u8; 32 << 20];
        assert!(peak().unwrap() >= std::hint::black_box(held).len() as u64);
    }
}
