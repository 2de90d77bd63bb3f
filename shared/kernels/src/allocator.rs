//! A setting of the programs' allocator.

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay` of `mimalloc.h`, which the bindings do not name.
const PURGE_DELAY: c_int = 15;

/// Milliseconds. A feature map's pages are freed and wanted again many times a second.
const A_SECOND: c_long = 1000;

/// Has mimalloc keep freed pages for a second before the system gets them back, which by default happens after 10 ms,
/// if the environment (`MIMALLOC_PURGE_DELAY`) does not say otherwise. To be called where a program with that
/// allocator begins; with another one it changes nothing.
pub fn keep_freed_pages() {
    // SAFETY: any option may be set to any number at any time.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, A_SECOND) };
}

/// Gives the system back what this thread and those that have ended have freed, without waiting for that second to be over.
/// mimalloc looks at its clock only when a thread asks for memory or frees some, so that one that waits would keep its
/// pages for as long as it waits. With another allocator it changes nothing.
pub fn give_back_freed_pages() {
    // SAFETY: it may be called by any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: it reads a number.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_some() {
            println!("skipped: MIMALLOC_PURGE_DELAY is set");
            return;
        }
        // Its default, by which it is told from others: a new version may count them anew.
        assert!([10, 1000].contains(&delay()), "{}", delay());
        keep_freed_pages();
        assert_eq!(delay(), 1000);
    }
}
