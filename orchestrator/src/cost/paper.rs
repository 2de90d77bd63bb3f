//! Tables VIII, IX and X of PPIDM, cell by cell: what is printed, and what its own accounting gives.
//!
//! The accounting: SD 1.5 at 512 x 512, batch 1, f32, one iteration, per device. The 51 3x3
//! convolutions but `conv_in` (two halo rows sent with every strip), the 16 cross-attentions (a strip of
//! the queries, all keys and values) and the 61 group normalisations. The paper's MB are 2^20 bytes in
//! the tables and 10^6 in its times.

use std::fmt::Write;

use lacuna_model::unet::UNet;
use serde::Serialize;

use super::{OfKind, by_kind};
use crate::error::Result;
use crate::fleet::tally::Kind;
use crate::schemes::Options;
use crate::schemes::ppidm::Ppidm;
use crate::schemes::{Setting, Sizes};

/// Megabits a second of the paper's link, up and down.
const LINK: [f64; 2] = [81.14, 340.56];
/// Devices of the paper's columns.
const DEVICES: [usize; 3] = [2, 4, 8];
/// Tokens of CLIP.
const TOKENS: usize = 77;
/// Bytes of 32 means and variances in f32.
const STATISTICS: usize = 256;

/// A number of the paper beside ours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Which table, or the time estimate.
    pub table: &'static str,
    /// Which row and column.
    pub place: String,
    /// As printed.
    pub printed: &'static str,
    /// What the paper's accounting gives, in the printed unit.
    pub recomputed: f64,
    /// Why the two differ, where they do.
    pub erratum: Option<&'static str>,
}

impl Cell {
    /// Whether the printed digits are those of the recomputed number, cut off or rounded.
    pub fn agrees(&self) -> bool {
        let digits = self.printed.split_once('.').map_or(0, |(_, d)| d.len());
        let scale = 10f64.powi(digits as i32);
        let printed = self.printed.parse::<f64>().unwrap_or(f64::NAN) * scale;
        let scaled = self.recomputed * scale;
        // A last digit of tolerance for the sums in binary.
        let near = |x: f64| (x - printed).abs() < 1e-6;
        near((scaled + 1e-9).floor()) || near(scaled.round())
    }
}

const MAX_IGNORES_WIDE: &str = "the printed maximum misses the 1280-channel layers";
const NORM_TOTAL_TWICE: &str =
    "printed is twice the sum over layers: two passes, mean and variance";
const STATISTICS_FOUR_TIMES: &str = "printed is four times the sum over layers";
const WRONG_SIZE: &str = "printed divides the download's size by the uplink";
const WRONG_RATE: &str = "printed is an eighth: bytes divided by bits a second";
const FOLLOWS: &str = "follows from the convolutions' time";

/// Printed: up min, max, total, down min, max, total.
type Row = [&'static str; 6];

const CONV: [Row; 3] = [
    ["0.23", "7.96", "85.23", "0.031", "5", "55.18"],
    ["0.15", "4.21", "47.03", "0.016", "2.5", "27.59"],
    ["0.11", "2.34", "27.92", "0.008", "1.25", "13.79"],
];
const ATTENTION: [Row; 3] = [
    ["0.90", "2.68", "29.36", "0.15", "2.5", "22.03"],
    ["0.83", "1.43", "18.34", "0.07", "1.25", "11.01"],
    ["0.68", "0.81", "12.83", "0.03", "0.625", "5.50"],
];
const NORM: [Row; 3] = [
    ["0.15", "7.5", "171.87", "0.0002", "0.0002", "0.059"],
    ["0.07", "3.75", "85.93", "0.0002", "0.0002", "0.059"],
    ["0.03", "1.87", "42.96", "0.0002", "0.0002", "0.059"],
];
const COLUMNS: [&str; 6] = [
    "up min",
    "up max",
    "up total",
    "down min",
    "down max",
    "down total",
];

/// Every cell of the three tables, and the times of the text.
///
/// # Errors
/// None for the paper's own model.
pub fn cells(sd15: &UNet) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    let mut four_devices = Vec::new();
    for (i, devices) in DEVICES.into_iter().enumerate() {
        let kinds = by_kind(&setting().count(sd15, devices)?);
        let tables = [
            ("VIII convolution", Kind::Conv, CONV[i]),
            ("IX attention", Kind::Attention, ATTENTION[i]),
            ("X group norm", Kind::GroupNorm, NORM[i]),
        ];
        for (table, kind, printed) in tables {
            let numbers = numbers(kind, kinds.get(&kind).copied().unwrap_or_default());
            for ((column, printed), bytes) in COLUMNS.into_iter().zip(printed).zip(numbers) {
                cells.push(Cell {
                    table,
                    place: format!("{devices} devices, {column}"),
                    printed,
                    recomputed: bytes as f64 / (1 << 20) as f64,
                    erratum: erratum(kind, devices, column),
                });
            }
            if devices == 4 {
                four_devices.push((table, numbers));
            }
        }
    }
    cells.extend(times(&four_devices));
    Ok(cells)
}

fn setting() -> Setting {
    Setting {
        scheme: Ppidm::default().scheme(),
        sizes: Sizes {
            latents: [1, 64, 64],
            levels: 4,
            tokens: TOKENS,
        },
        adapted: false,
    }
}

/// Bytes in the order of [`COLUMNS`], as the paper sends them: statistics in f32 where ours are f64.
fn numbers(kind: Kind, of: OfKind) -> [usize; 6] {
    let (up, mut down) = (of.up_per_worker, of.down_per_worker);
    if kind == Kind::GroupNorm {
        down.min = STATISTICS;
        down.max = STATISTICS;
        down.total = of.exchanges * STATISTICS;
    }
    [up.min, up.max, up.total, down.min, down.max, down.total]
}

fn erratum(kind: Kind, devices: usize, column: &str) -> Option<&'static str> {
    match (kind, devices, column) {
        (Kind::Attention, 8, "up max") => Some(MAX_IGNORES_WIDE),
        (Kind::GroupNorm, _, "up total") => Some(NORM_TOTAL_TWICE),
        (Kind::GroupNorm, _, "down total") => Some(STATISTICS_FOUR_TIMES),
        _ => None,
    }
}

/// Seconds of one iteration with four devices, by the paper's rule (printed MB as 10^6 bytes).
fn times(tables: &[(&'static str, [usize; 6])]) -> Vec<Cell> {
    let mb = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    let seconds = |mb: f64, rate: f64| 4.0 * mb * 8.0 / rate;
    let printed = [("10.88", "2.59"), ("7.23", "0.13"), ("33.89", "0.005")];
    let mut cells = Vec::new();
    let mut total = 0.0;
    for ((table, numbers), (up, down)) in tables.iter().zip(printed) {
        let [_, _, up_bytes, _, _, down_bytes] = *numbers;
        // The norm's times are of its two passes.
        let (passes, returns) = if table.starts_with('X') {
            (2.0, 4.0)
        } else {
            (1.0, 1.0)
        };
        let up_seconds = seconds(passes * mb(up_bytes), LINK[0]);
        total += up_seconds;
        let conv = table.starts_with("VIII");
        cells.push(Cell {
            table: "seconds",
            place: format!("{table}, up"),
            printed: up,
            recomputed: up_seconds,
            erratum: conv.then_some(WRONG_SIZE),
        });
        cells.push(Cell {
            table: "seconds",
            place: format!("{table}, down"),
            printed: down,
            recomputed: seconds(returns * mb(down_bytes), LINK[1]),
            erratum: table.starts_with("IX").then_some(WRONG_RATE),
        });
    }
    cells.push(Cell {
        table: "seconds",
        place: "one iteration".into(),
        printed: "52",
        recomputed: total,
        erratum: Some(FOLLOWS),
    });
    cells
}

/// The cells as lines of text.
pub fn table(cells: &[Cell]) -> String {
    let mut text = format!(
        "{:<18} {:<24} {:>8} {:>12}\n",
        "table", "cell", "printed", "recomputed"
    );
    for cell in cells {
        let note = match (cell.agrees(), cell.erratum) {
            (true, _) => "",
            (false, erratum) => erratum.unwrap_or("differs"),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{:<18} {:<24} {:>8} {:>12.4}  {note}",
            cell.table, cell.place, cell.printed, cell.recomputed
        );
    }
    text
}
