//! What NVIDIA's driver says of this machine, asked before burn opens it: where the library is missing, burn panics.

use cudarc::driver::{result, sys};

/// Names of the GPUs that the driver knows, in its order.
///
/// # Errors
/// Why there is no driver, in a person's words.
pub fn devices() -> Result<Vec<String>, String> {
    // SAFETY: opening a library runs what it does at its start, and this one is made to be opened by any program.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no libcuda.so.1, which NVIDIA's driver brings".into());
    }
    let failed = |error: result::DriverError| format!("NVIDIA's driver: {error}");
    result::init().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    let name = |i| result::device::get(i).and_then(result::device::get_name);
    (0..count).map(|i| name(i).map_err(failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_driver_is_told_so() {
        match devices() {
            Ok(names) => assert!(names.iter().all(|name| !name.is_empty()), "{names:?}"),
            Err(reason) => assert!(reason.contains("NVIDIA's driver"), "{reason}"),
        }
    }
}
