//! A run's rows and means as CSV and Markdown.

use super::paper::{self, COLUMNS};
use super::record::{Outcome, Record};
use super::results::Results;
use super::summary::Summary;
use crate::error::{Error, Result};
use crate::metrics::metric::Metric;

/// A table of texts.
pub struct Texts {
    /// Over the columns.
    pub header: Vec<String>,
    /// As long as the header, each.
    pub rows: Vec<Vec<String>>,
}

/// The metrics that have a column, in the paper's order.
const METRICS: [(Metric, &str); 7] = [
    (Metric::Psnr, "PSNR"),
    (Metric::Ssim, "SSIM"),
    (Metric::Lpips, "LPIPS"),
    (Metric::Fid, "FID"),
    (Metric::Kid, "KID"),
    (Metric::Clip, "CLIP score"),
    (Metric::Demo, "demo features' distance (not FID)"),
];

impl Texts {
    /// The summary as a table, in an experiment beside the paper's.
    pub fn of(summary: &Summary, record: &Record) -> Self {
        let metrics = METRICS
            .iter()
            .filter(|(metric, _)| record.metrics.contains_key(metric));
        let mut header = vec!["setting".to_owned(), "pictures".into()];
        header.extend(metrics.clone().map(|(_, title)| (*title).to_owned()));
        let own = summary.arms.iter().map(|arm| {
            let mut row = vec![arm.name.clone(), arm.pictures.to_string()];
            row.extend(metrics.clone().map(|(metric, _)| arm.cell(*metric)));
            row
        });
        let mut rows: Vec<Vec<String>> = own.collect();
        if let Some(table) = record.experiment.as_deref().and_then(paper::table) {
            header.push("the paper's".into());
            header.extend(COLUMNS.map(String::from));
            let columns = header.len();
            for (row, arm) in rows.iter_mut().zip(&record.arms) {
                let label = arm.paper.as_deref();
                let printed = table.rows.iter().find(|row| Some(row.label) == label);
                row.extend(printed.into_iter().flat_map(super::paper::Printed::texts));
                row.resize(columns, String::new());
            }
            let known = |label: &str| {
                record
                    .arms
                    .iter()
                    .any(|a| a.paper.as_deref() == Some(label))
            };
            for printed in table.rows.iter().filter(|row| !known(row.label)) {
                let mut row = vec![String::new(); columns - 1 - COLUMNS.len()];
                row.extend(printed.texts());
                rows.push(row);
            }
        }
        Self { header, rows }
    }

    /// In Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.header.len()));
        let rows = self.rows.iter().map(|row| line(row));
        line(&self.header) + &rule + &rows.collect::<String>()
    }
}

impl paper::Printed {
    fn texts(&self) -> impl Iterator<Item = String> {
        let cells = std::iter::once(self.label).chain(self.values);
        cells.map(String::from)
    }
}

/// The rows as CSV, with `inf` as the PSNR of identical pictures.
///
/// # Errors
/// [`Error::Request`]: none can happen in memory.
pub fn rows_csv(results: &Results) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Request(format!("no CSV: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = [
        "setting",
        "index",
        "seed",
        "prompt",
        "identical",
        "psnr",
        "ssim",
        "lpips",
        "clip",
        "failed",
    ];
    writer.write_record(header).map_err(|e| failed(&e))?;
    let wanted = results.record.metrics.contains_key(&Metric::Psnr);
    let text = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for row in &results.rows {
        let measured = match &row.outcome {
            Outcome::Measured(v) => [
                v.identical.to_string(),
                text(v.psnr.or((v.identical && wanted).then_some(f64::INFINITY))),
                text(v.ssim),
                text(v.lpips),
                text(v.clip),
                String::new(),
            ],
            Outcome::Failed { failed } => {
                let [a, b, c, d, e] = [const { String::new() }; 5];
                [a, b, c, d, e, failed.clone()]
            }
        };
        let (index, seed) = (row.index.to_string(), row.seed.to_string());
        let whose = [row.arm.clone(), index, seed, row.prompt.clone()];
        let record = whose.iter().chain(&measured);
        writer.write_record(record).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::super::store::tests::{record, rows, write};
    use super::*;

    #[test]
    fn an_experiment_stands_beside_the_papers_table() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = record();
        record.experiment = Some("table-6".into());
        record.metrics.insert(Metric::Psnr, String::new());
        record.arms[0].paper = Some("40".into());
        write(dir.path(), record, &rows());
        let results = Results::of(Store::read(dir.path()).unwrap());
        let summary = Summary::of(&results).unwrap();
        let table = Texts::of(&summary, &results.record).markdown();
        let first = "| ppidm | 3 | 31.00 (1 identical) | 40 | 37.04 | 0.969 | 0.017 | 4.46 |";
        assert!(table.contains(first), "{table}");
        assert!(table.contains("|  |  |  | 70 | 36.48 |"), "{table}");
    }
}
