//! Whether what is to be computed here fits into the memory that is free.

use sysinfo::System;

use crate::error::{Error, Result};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
