//! What a device's memory holds, for those who ask again and again.

use std::sync::Mutex;

use lacuna_model::device::OpenDevice;

/// A device, and what it held when it last said so.
pub(crate) struct Held {
    device: OpenDevice,
    bytes: Mutex<Option<u64>>,
    asking: Mutex<()>,
}

impl Held {
    pub(crate) fn new(device: OpenDevice) -> Self {
        Self {
            device,
            bytes: Mutex::default(),
            asking: Mutex::default(),
        }
    }

    /// The device's kind, and bytes that this process holds there. Where a GPU hangs, one who asks waits for it, and the others
    /// are told what it said before.
    pub(crate) fn now(&self) -> Option<(&'static str, u64)> {
        if let Ok(_asking) = self.asking.try_lock() {
            let now = self.device.held();
            *self.bytes.lock().ok()? = now;
        }
        let bytes = *self.bytes.lock().ok()?;
        Some((self.device.kind, bytes?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn who_asks_while_another_waits_is_told_what_was_said_before() {
        let held = Held::new(OpenDevice::cpu());
        let waiting = held.asking.lock().unwrap();
        assert_eq!(held.now(), None);
        drop(waiting);
        let (kind, bytes) = held.now().unwrap();
        assert!(kind == "cpu" && bytes > 1 << 20, "{kind} {bytes}");
        let _waiting = held.asking.lock().unwrap();
        assert_eq!(held.now(), Some((kind, bytes)));
    }
}
