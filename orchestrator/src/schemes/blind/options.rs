//! What can be chosen of shares that tell nothing.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use lacuna_model::device;
use lacuna_shares::precision::MOST_SPARED;
use lacuna_shares::{Precision, Ring, Shares};

use crate::error::Error;

/// What can be chosen of shares that tell nothing; a plan chooses what is left out.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[command(next_help_heading = "Scheme")]
pub struct Blind {
    /// blind: which shares: carry, for those who have memory for the weights that workers multiply with, or ring, which reads
    /// them once and keeps none, for more bytes [default: carry].
    #[arg(long, value_name = "KIND")]
    pub shares: Option<Kind>,
    /// blind: how many bits the numbers have that travel: paper (10/10.1; of a ring 22/11), speed (12/13.1; 26/14), quality
    /// (16/16.2, of two workers a group; 32/18), UP/RANGE.FRACTION, of a feature, and of a product before and behind its
    /// point, or UP/DOWN of a ring [default: speed; under a policy, what it allows].
    #[arg(long, value_name = "BITS")]
    pub share_bits: Option<Bits>,
    /// blind, shares with carries: how many of 100 features you multiply yourself, 1, 2, 4, 8 or 16: each time twice as many
    /// spare a bit of the upload, for the same picture [default: 1; under a policy, what is fastest].
    #[arg(long, value_name = "PERCENT")]
    pub share_carries: Option<Carries>,
    /// blind: into how many groups the workers fall, each of which computes as many of the batch's entries; all
    /// workers of a group together see everything, any fewer of it nothing [default: 1; under a policy, what is fastest].
    #[arg(long, value_name = "N")]
    pub share_groups: Option<usize>,
    /// blind: which layers workers multiply: convs, the convolutions that keep the size of their input; all that have
    /// weights; or a number, those of at least so many operations for each number that travels [default: convs; under
    /// a policy, what is fastest].
    #[arg(long, value_name = "LAYERS")]
    pub share_layers: Option<Layers>,
    /// blind: what the weights are rounded to that shares are multiplied with, f32 or f16: f16 where workers hold them in
    /// half precision; weights of a file in half precision stay what they are [default: f32].
    #[arg(long, value_name = "TYPE")]
    pub share_weights: Option<device::Precision>,
    /// The share of the workers' products that is checked, if any is.
    #[arg(skip)]
    pub verify: Option<f64>,
}

/// Which shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Multiplied in f32; the user multiplies a few features.
    Carry,
    /// Multiplied as integers; the user keeps no weights of what is sent.
    Ring,
}

impl Kind {
    /// Of `shares`.
    fn of(shares: Shares) -> Self {
        match shares {
            Shares::Carry(_) => Self::Carry,
            Shares::Ring(_) => Self::Ring,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Carry => "carry",
            Self::Ring => "ring",
        })
    }
}

/// Bits that carries spare, as it is chosen: by how many of 100 features have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carries(pub u32);

impl Carries {
    /// What a plan tells apart.
    pub const CHOICES: [Self; 4] = [Self(0), Self(1), Self(2), Self(3)];
}

impl FromStr for Carries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = 0..=MOST_SPARED;
        let spared = bits.map(Self).find(|spared| spared.to_string() == text);
        spared.ok_or_else(|| "one of 1, 2, 4, 8 and 16 of 100".into())
    }
}

impl fmt::Display for Carries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", 1 << self.0)
    }
}

/// How many bits everything has, as it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Those of a name.
    Named(&'static Preset),
    /// Others, before carries spare any.
    Of(Shares),
}

/// Which layers workers multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Every convolution of more than one row and column that keeps the size of its input, also where that was enlarged
    /// before.
    Convs,
    /// Every layer that has weights, but for those that never are.
    All,
    /// Of these every one of at least so many operations for each number that travels.
    Work(u32),
}

impl Layers {
    /// What a plan tells apart: whoever computes slowly has more of them sent.
    pub const CHOICES: [Self; 8] = [
        Self::Convs,
        Self::Work(10_000),
        Self::Work(5_000),
        Self::Work(2_000),
        Self::Work(1_000),
        Self::Work(500),
        Self::Work(250),
        Self::All,
    ];
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "convs" => Ok(Self::Convs),
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::Work).map_err(|_| {
                "neither convs nor all, nor a number of operations, up to 4294967295, for each number that travels"
                    .into()
            }),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Convs => f.write_str("convs"),
            Self::All => f.write_str("all"),
            Self::Work(least) => write!(f, "{least}"),
        }
    }
}

/// Bits that have a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// The bits of shares with carries.
    pub precision: Precision,
    /// The bits of a ring's.
    pub ring: Ring,
    /// The least PSNR of a picture of the demo model against the uncut one that they promise, in tenths of a dB.
    psnr: u32,
}

impl Preset {
    /// The least PSNR of a picture of the demo model against the uncut one that they promise, in dB.
    pub fn psnr(&self) -> f64 {
        f64::from(self.psnr) / 10.0
    }
}

/// Those that there are.
pub static PRESETS: [Preset; 3] = [
    Preset {
        name: "paper",
        precision: Precision::PAPER,
        ring: Ring::PAPER,
        psnr: 369,
    },
    Preset {
        name: "speed",
        precision: Precision::SPEED,
        ring: Ring::SPEED,
        psnr: 500,
    },
    Preset {
        name: "quality",
        precision: Precision::QUALITY,
        ring: Ring::QUALITY,
        psnr: 620,
    },
];

/// Those that are usual.
static USUAL: &Preset = &PRESETS[1];

impl Bits {
    /// They themselves, whether they have a name or not.
    fn numbers(&self) -> String {
        match self {
            Self::Named(preset) => preset.name.to_owned(),
            Self::Of(Shares::Carry(precision)) => {
                let [up, range] = [precision.up(), precision.range()];
                format!("{up}/{range}.{}", precision.fraction())
            }
            Self::Of(Shares::Ring(ring)) => format!("{}/{}", ring.up(), ring.down()),
        }
    }

    /// What they are called; none where they have no name.
    pub fn preset(&self) -> Option<&'static Preset> {
        match self {
            Self::Named(preset) => Some(preset),
            Self::Of(shares) => PRESETS.iter().find(|preset| match shares {
                Shares::Carry(precision) => preset.precision == *precision,
                Shares::Ring(ring) => preset.ring == *ring,
            }),
        }
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(preset) = PRESETS.iter().find(|preset| preset.name == text) {
            return Ok(Self::Named(preset));
        }
        let numbers = text.split_once('/').and_then(|(up, down)| {
            let (range, fraction) = match down.split_once('.') {
                Some((range, fraction)) => (range, Some(fraction.parse().ok()?)),
                None => (down, None),
            };
            Some((up.parse().ok()?, range.parse().ok()?, fraction))
        });
        let names = PRESETS.each_ref().map(|preset| preset.name).join(", ");
        let (up, down, fraction) = numbers.ok_or_else(|| {
            format!(
                "none of {names}, and neither UP/RANGE.FRACTION as in 12/13.1 nor UP/DOWN of a ring as in 26/14"
            )
        })?;
        let shares = match fraction {
            Some(fraction) => Precision::new(up, down, fraction).map(Shares::Carry),
            None => Ring::new(up, down).map(Shares::Ring),
        };
        shares.map(Self::Of).map_err(|e| e.to_string())
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.preset() {
            Some(preset) => f.write_str(preset.name),
            None => f.write_str(&self.numbers()),
        }
    }
}

impl Blind {
    /// How many bits everything has, before carries spare any; what is usual where nobody chose.
    pub fn bits(&self) -> Bits {
        self.share_bits.unwrap_or(Bits::Named(USUAL))
    }

    /// Which shares; with carries where nobody chose.
    pub fn kind(&self) -> Kind {
        match (self.shares, self.share_bits) {
            (Some(kind), _) => kind,
            (None, Some(Bits::Of(shares))) => Kind::of(shares),
            (None, _) => Kind::Carry,
        }
    }

    /// The shares, with their bits.
    ///
    /// # Errors
    /// [`Error::Workers`] for bits or carries that shares of this kind do not have.
    pub fn chosen(&self) -> Result<Shares, Error> {
        let refusal = |reason: String| Error::Workers(format!("--scheme blind: {reason}"));
        let (kind, bits) = (self.kind(), self.bits());
        let shares = match (bits, kind) {
            (Bits::Named(preset), Kind::Carry) => preset.precision.into(),
            (Bits::Named(preset), Kind::Ring) => preset.ring.into(),
            (Bits::Of(shares), kind) if Kind::of(shares) == kind => shares,
            (Bits::Of(_), Kind::Carry) => {
                let reason = format!(
                    "--share-bits {} is of a ring; --shares carry has UP/RANGE.FRACTION, as in 12/13.1",
                    bits.numbers()
                );
                return Err(refusal(reason));
            }
            (Bits::Of(_), Kind::Ring) => {
                let reason = format!(
                    "--share-bits {} is of shares with carries; --shares ring has UP/DOWN, as in 26/14",
                    bits.numbers()
                );
                return Err(refusal(reason));
            }
        };
        match (shares, self.share_carries) {
            (shares, None) => Ok(shares),
            (Shares::Carry(precision), Some(Carries(spared))) => {
                let spared = precision.sparing(spared).map_err(|e| {
                    let percent = Carries(spared);
                    refusal(format!(
                        "--share-carries {percent} with --share-bits {bits}: {e}"
                    ))
                });
                Ok(spared?.into())
            }
            (Shares::Ring(_), Some(percent)) => {
                let reason = format!("--share-carries {percent}: shares of a ring have none");
                Err(refusal(reason))
            }
        }
    }

    /// What carries spare; nothing where nobody chose.
    pub fn carries(&self) -> Carries {
        self.share_carries.unwrap_or(Carries(0))
    }

    /// What weights are rounded to; to nothing where nobody chose.
    pub fn weights(&self) -> device::Precision {
        self.share_weights.unwrap_or_default()
    }

    /// Which layers workers multiply; what is usual where nobody chose.
    pub fn layers(&self) -> Layers {
        self.share_layers.unwrap_or(Layers::Convs)
    }

    /// Into how many groups the workers fall; one where nobody chose.
    pub fn groups(&self) -> usize {
        self.share_groups.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_as_they_are_written_and_others_named() {
        for text in [
            "paper", "speed", "quality", "11/12.1", "16/18.0", "24/12", "32/24",
        ] {
            assert_eq!(text.parse::<Bits>().unwrap().to_string(), text);
        }
        for speed in ["12/13.1", "26/14"] {
            assert_eq!(speed.parse::<Bits>().unwrap().to_string(), "speed");
        }
        for (text, named) in [
            ("fast", "paper, speed, quality"),
            ("12/13", "features of a ring of 12 bits"),
            ("26/", "UP/DOWN"),
            ("a/b.c", "UP/RANGE.FRACTION"),
            ("17/13.1", "features of 17 bits; from 6 to 16"),
            ("12/99999999999999999999.1", "UP/RANGE.FRACTION"),
        ] {
            let error = text.parse::<Bits>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn layers_are_read_as_they_are_written() {
        for layers in Layers::CHOICES {
            assert_eq!(layers.to_string().parse::<Layers>().unwrap(), layers);
        }
        for wrong in ["most", "-1", "1.5", ""] {
            assert!(
                wrong
                    .parse::<Layers>()
                    .unwrap_err()
                    .contains("neither convs nor all")
            );
        }
    }

    #[test]
    fn bits_and_carries_are_of_the_kind_that_was_chosen() {
        let blind = |shares, bits: &str, carries: Option<&str>| Blind {
            shares,
            share_bits: Some(bits.parse().unwrap()),
            share_carries: carries.map(|text| text.parse().unwrap()),
            ..Blind::default()
        };
        let chosen = |shares, bits, carries| blind(shares, bits, carries).chosen();
        let (carry, ring) = (Some(Kind::Carry), Some(Kind::Ring));
        assert_eq!(Blind::default().chosen().unwrap(), Precision::SPEED.into());
        assert_eq!(chosen(ring, "quality", None).unwrap(), Ring::QUALITY.into());
        assert_eq!(
            chosen(None, "24/12", None).unwrap(),
            Ring::new(24, 12).unwrap().into()
        );
        assert_eq!(chosen(None, "26/14", None).unwrap(), Ring::SPEED.into());
        let spared = Precision::SPEED.sparing(2).unwrap();
        assert_eq!(chosen(None, "speed", Some("4")).unwrap(), spared.into());
        for (shares, bits, carries, named) in [
            (carry, "24/12", None, "UP/RANGE.FRACTION"),
            (carry, "26/14", None, "UP/RANGE.FRACTION"),
            (ring, "12/12.1", None, "UP/DOWN"),
            (ring, "12/13.1", None, "UP/DOWN"),
            (None, "26/14", Some("1"), "have none"),
            (ring, "speed", Some("1"), "have none"),
            (
                None,
                "6/10.1",
                Some("2"),
                "--share-carries 2 with --share-bits 6/10.1",
            ),
        ] {
            let error = chosen(shares, bits, carries).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        for wrong in ["0", "3", "32", "-1", "1.0", ""] {
            assert!(wrong.parse::<Carries>().unwrap_err().contains("of 100"));
        }
    }
}
