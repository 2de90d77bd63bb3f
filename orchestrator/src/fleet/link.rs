//! A connection to the workers, by its numbers.

use serde::Serialize;

/// The user's connection, which all workers share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Link {
    /// From the user, 10^6 bits a second.
    pub uplink_mbps: f64,
    /// To the user, 10^6 bits a second.
    pub downlink_mbps: f64,
    /// Milliseconds from a request to its answer, were both empty.
    pub rtt_ms: f64,
}

impl std::str::FromStr for Link {
    type Err = String;

    /// `5g` (the paper's), `fibre`, `lan`, or numbers: up, down in 10^6 bits a second, milliseconds.
    fn from_str(text: &str) -> Result<Self, String> {
        let [uplink_mbps, downlink_mbps, rtt_ms] = match text {
            "5g" => return Ok(Self::PAPER),
            "fibre" => [500.0, 1000.0, 10.0],
            "lan" => [10_000.0, 10_000.0, 0.2],
            other => {
                let numbers = other.split(',').map(|n| n.trim().parse::<f64>().ok());
                let numbers: Option<Vec<f64>> = numbers.collect();
                let numbers = numbers.and_then(|n| <[f64; 3]>::try_from(n).ok());
                let hint = "5g, fibre, lan, or UP,DOWN,MILLISECONDS such as 50,200,30";
                numbers.ok_or(hint)?
            }
        };
        let link = Self {
            uplink_mbps,
            downlink_mbps,
            rtt_ms,
        };
        link.check().map(|()| link)
    }
}

/// Least and most of a rate, 10^6 bits a second, and of a round trip, milliseconds.
const RATES: [f64; 2] = [0.001, 1e7];
const WAITS: [f64; 2] = [0.0, 60_000.0];

impl Link {
    /// The paper's 5G, with a round trip that it does not say.
    pub const PAPER: Self = Self {
        uplink_mbps: 81.14,
        downlink_mbps: 340.56,
        rtt_ms: 20.0,
    };

    /// That there is such a connection: no rate and no wait beyond what anybody has, so that what is computed of them
    /// are times.
    ///
    /// # Errors
    /// A line that says what is off.
    pub fn check(&self) -> Result<(), String> {
        let each = [
            ("up", self.uplink_mbps, RATES, "10^6 bits a second"),
            ("down", self.downlink_mbps, RATES, "10^6 bits a second"),
            ("round trip", self.rtt_ms, WAITS, "milliseconds"),
        ];
        match each
            .into_iter()
            .find(|(_, n, [least, most], _)| !(least..=most).contains(&n))
        {
            Some((what, n, [least, most], unit)) => {
                Err(format!("{what} {n:e}: from {least} to {most} {unit}"))
            }
            None => Ok(()),
        }
    }

    /// Seconds for so many bytes each way in so many round trips. Requests and answers alternate, so
    /// nothing overlaps.
    pub fn seconds(&self, [up, down]: [u64; 2], round_trips: usize) -> f64 {
        let transfer = |bytes: u64, mbps: f64| bytes as f64 * 8.0 / (mbps * 1e6);
        let waits = round_trips as f64 * self.rtt_ms / 1e3;
        transfer(up, self.uplink_mbps) + transfer(down, self.downlink_mbps) + waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_takes_bytes_one_way_after_the_other() {
        let link = Link {
            uplink_mbps: 80.0,
            downlink_mbps: 160.0,
            rtt_ms: 20.0,
        };
        let seconds = link.seconds([10_000_000, 10_000_000], 50);
        assert!((seconds - (1.0 + 0.5 + 1.0)).abs() < 1e-12);
    }

    #[test]
    fn links_have_names_or_numbers() {
        let named: Link = "5g".parse().unwrap();
        assert_eq!(named, "81.14, 340.56, 20".parse().unwrap());
        for wrong in [
            "",
            "6g",
            "1,2",
            "1,2,3,4",
            "0,1,1",
            "1,nan,1",
            "1,1,-1",
            "1e308,1,1",
            "1,1e-320,1",
            "1,1,1e15",
        ] {
            assert!(wrong.parse::<Link>().is_err(), "{wrong:?}");
        }
    }
}
