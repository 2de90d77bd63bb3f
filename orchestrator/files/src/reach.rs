//! How workers are reached: on this machine, or over a network that others share.

use crate::address::{LOOPBACK, host};
use crate::error::{Error, Result};
use crate::fleet::{FleetConfig, WorkerConfig};

impl WorkerConfig {
    /// Whether it is on this machine: then it is the user's own and no provider's. A tunnel that ends here
    /// looks the same; whoever has one names a policy.
    pub fn is_own(&self) -> bool {
        host(&self.url) == LOOPBACK
    }

    /// Whether what is sent to it can be read on the way.
    fn is_plain(&self) -> bool {
        self.url.scheme() != "https" && !self.is_own()
    }
}

impl FleetConfig {
    /// Whether all workers, spares included, are on this machine.
    pub fn is_own(&self) -> bool {
        self.everybody().all(WorkerConfig::is_own)
    }

    /// Refuses to show a token to everybody on the way, and warns where rows of the picture can be read
    /// there; `insecure` says that the user knows.
    ///
    /// # Errors
    /// [`Error::PlainToken`], naming the worker.
    pub fn check_way(&self, insecure: bool) -> Result<()> {
        let plain = self.everybody().filter(|w| w.is_plain() && !insecure);
        for worker in plain {
            let worker_url = worker.url.to_string();
            if worker.token.is_some() {
                return Err(Error::PlainToken { worker: worker_url });
            }
            tracing::warn!(
                "worker {worker_url} is reached by plain HTTP: everybody on the way can read what it sees \
                 (--insecure says that you know)"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Trust;

    fn fleet(url: &str, token: Option<&str>) -> FleetConfig {
        FleetConfig {
            workers: vec![WorkerConfig {
                url: url.parse().unwrap(),
                provider: "p".into(),
                token: token.map(str::to_owned),
                trust: Trust::default(),
            }],
            spares: Vec::new(),
        }
    }

    #[test]
    fn only_loopback_is_ones_own() {
        for own in [
            "http://127.0.0.1:7700",
            "http://127.1.2.3",
            "http://[::1]:7700",
            "http://[::ffff:127.0.0.1]",
            "http://localhost:7700",
            "https://LOCALHOST.",
            "http://a.localhost",
            "http://0.0.0.0:7700",
        ] {
            assert!(fleet(own, None).is_own(), "{own}");
        }
        for far in [
            "http://10.0.0.1",
            "http://[fe80::1]",
            "https://worker.example",
            "http://localhost.example",
            "http://notlocalhost",
            "http://127.0.0.1.example",
        ] {
            assert!(!fleet(far, None).is_own(), "{far}");
        }
        let mut mixed = fleet("http://127.0.0.1", None);
        mixed.spares = fleet("http://10.0.0.1", None).workers;
        assert!(!mixed.is_own());
    }

    #[test]
    fn a_token_goes_out_in_plain_only_where_that_is_asked_for() {
        let token = Some("secret");
        for (url, token, insecure, refused) in [
            ("http://10.0.0.1", token, false, true),
            ("http://worker.example", token, false, true),
            ("http://worker.example", token, true, false),
            ("http://worker.example", None, false, false),
            ("https://worker.example", token, false, false),
            ("http://127.0.0.1", token, false, false),
        ] {
            let checked = fleet(url, token).check_way(insecure);
            assert_eq!(checked.is_err(), refused, "{url} {token:?} {insecure}");
            let said = checked.err().map_or(String::new(), |e| e.to_string());
            assert_eq!(said.contains("--insecure"), refused, "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
        // A spare gets its token, too.
        let mut spare = fleet("https://worker.example", token);
        spare.spares = fleet("http://worker.example", token).workers;
        assert!(spare.check_way(false).is_err());
    }
}
