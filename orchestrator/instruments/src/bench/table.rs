//! The rows as text.

use super::Report;
use super::process::Memory;
use super::row::Summary;
use lacuna_orchestrator::fleet::link::Link;

/// What was timed, and a line for each row.
pub fn table(report: &Report) -> String {
    let labels = report.rows.iter().map(|row| row.label.chars().count());
    let width = labels.max().unwrap_or(0).max("row".len());
    let mut lines = vec![
        format!("{}; {}", report.subject.title(), link(report.link)),
        "MB, requests and seconds are of a call behind the first; PSNR is against local; memory is the most \
         that was resident"
            .to_owned(),
        format!(
            "{:<width$} {:>8} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}",
            "row",
            "median s",
            "min s",
            "max s",
            "ratio",
            "link s",
            "MB up",
            "MB down",
            "requests",
            "GFLOP",
            "yours",
            "PSNR dB",
            "MB yours",
            "MB worker",
        ),
    ];
    lines.extend(report.rows.iter().map(|row| line(row, width)));
    lines.join("\n")
}

/// The link in a few words.
pub fn link(link: Option<Link>) -> String {
    link.map_or("no emulated link".into(), |l| {
        let Link {
            uplink_mbps,
            downlink_mbps,
            rtt_ms,
        } = l;
        format!("link {uplink_mbps} Mbit/s up, {downlink_mbps} down, {rtt_ms} ms")
    })
}

fn line(row: &Summary, width: usize) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let or_none = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let psnr = match row.identical_to_local {
        Some(true) => "same".to_owned(),
        _ => or_none(row.psnr_db, 1),
    };
    let memory = row.peak_memory.as_ref();
    let worker = |memory: &Memory| memory.workers_bytes.iter().max().copied();
    format!(
        "{:<width$} {:>8.3} {:>8.3} {:>8.3} {:>6.2} {:>8} {:>8.2} {:>8.2} {:>8} {:>8.1} {:>8.1} {psnr:>8} {:>8} {:>9}",
        row.label,
        row.seconds_per_call_median,
        row.seconds_per_call_min,
        row.seconds_per_call_max,
        row.ratio_to_first_row,
        or_none(row.link_seconds_per_call, 3),
        mb(row.bytes_up_per_call),
        mb(row.bytes_down_per_call),
        row.requests_per_call,
        row.workers_gflop_per_call,
        row.user_gflop_per_call,
        or_none(memory.map(|m| mb(m.orchestrator_bytes)), 0),
        or_none(memory.and_then(worker).map(mb), 0),
    )
}
