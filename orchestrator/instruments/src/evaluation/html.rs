//! The report: one HTML file that needs no other.

use std::collections::BTreeSet;
use std::path::Path;

use super::paper;
use super::plots::DotPlot;
use super::record::{Record, Row, Values};
use super::results::Results;
use super::summary::Summary;
use super::table::Texts;
use crate::markup::{base64, escape};
use crate::metrics::decode::Rgb8;
use lacuna_orchestrator::picture::encode_png;

/// Prompts whose pictures are shown: the file stays small enough to be opened.
const SHOWN: usize = 6;

/// How much brighter a difference map is than the difference.
const AMPLIFIED: u16 = 8;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:1rem auto;max-width:1100px;\
padding:0 1rem;color:#1c2733}h1,h2,h3{line-height:1.2}table{border-collapse:collapse;margin:1rem 0}\
td,th{border-bottom:1px solid #d5dde5;padding:.3rem .7rem;text-align:left;vertical-align:top}\
.scroll{overflow-x:auto}.grid img{width:128px;image-rendering:pixelated;display:block;margin:2px 0}\
.grid th{max-width:128px;overflow-wrap:anywhere;font-weight:600;font-size:12px}\
.note{color:#54616e}h1{overflow-wrap:anywhere}svg{font-size:13px}svg .axis{stroke:#66727f}\
svg circle{fill:#2467b3;fill-opacity:.45;stroke:#2467b3}svg .mean{stroke:#b3392f;stroke-width:2}svg .tick{fill:#54616e}";

/// Most dots of one setting in a plot.
const DOTS: usize = 400;

/// The report of a run. A picture that cannot be shown is said to be so in its place.
pub fn page(results: &Results, summary: &Summary) -> String {
    let record = &results.record;
    let title = match record.experiment.as_deref().and_then(paper::table) {
        Some(table) => format!("Lacuna beside the paper's {}", table.title),
        None => "Lacuna: pictures of several settings".into(),
    };
    let title = escape(&title);
    let body = [
        format!("<h1>{title}</h1>"),
        about(record),
        format!("<h2>Means</h2>{}", table(&Texts::of(summary, record))),
        notes(record, summary),
        format!("<h2>Each picture</h2>{}", plots(results)),
        format!("<h2>Pictures</h2>{}", grid(results)),
        failures(summary),
    ];
    format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>\
         <meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head><body>\n{}\n\
         </body></html>\n",
        body.join("\n")
    )
}

fn about(record: &Record) -> String {
    let [width, height] = record.size;
    let against = match &record.reference {
        Some(dir) => format!("the pictures in {dir}"),
        None => "the uncut model's pictures from the same noise".into(),
    };
    let sets = record.fid_reference.as_ref();
    let sets = sets.map_or(String::new(), |dir| {
        format!(" FID and KID compare with the pictures in {dir}.")
    });
    let scheduler = record.scheduler.as_deref().unwrap_or("the model's own");
    let text = format!(
        "Made with the model {} (U-Net {}): {} prompts, {width}x{height}, {} steps, guidance {}, scheduler \
         {scheduler}, seeds from {}, where a setting does not say otherwise. Compared with {against}.{sets}",
        record.model_name,
        record.model.get(..12).unwrap_or(&record.model),
        record.prompts,
        record.steps,
        record.guidance,
        record.seed,
    );
    format!("<p>{}</p>", escape(&text))
}

fn table(texts: &Texts) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    let rows = texts.rows.iter().map(|row| line(row, "td"));
    format!(
        "<div class='scroll'><table>{}{}</table></div>",
        line(&texts.header, "th"),
        rows.collect::<String>()
    )
}

fn notes(record: &Record, summary: &Summary) -> String {
    let mut notes = vec![
        "PSNR is the mean over the pictures that are not identical to the reference.".to_owned(),
    ];
    if record.experiment.is_some() {
        let model = &record.model_name;
        notes.push(format!(
            "Ours are made with {model}, the paper's with Stable Diffusion 1.5 or, where the row says so, SDXL: only tendencies compare."
        ));
    }
    let without = summary.arms.iter().filter_map(|arm| {
        let reason = arm.no_distance.as_ref()?;
        Some(format!("{}: {reason}.", arm.name))
    });
    notes.extend(without);
    format!("<p class='note'>{}</p>", escape(&notes.join(" ")))
}

fn plots(results: &Results) -> String {
    let of = |title, value: fn(&Values) -> Option<f64>| {
        let rows = results.record.arms.iter().map(|arm| {
            let measured = || results.of_arm(arm).filter_map(|row| row.outcome.measured());
            let identical = measured().filter(|values| values.identical).count();
            let note = match identical {
                0 => String::new(),
                n => format!("{n} identical"),
            };
            let different = measured().filter(|values| !values.identical);
            let values = different.filter_map(value).collect();
            (arm.name.as_str(), values, note)
        });
        let plot = DotPlot {
            title,
            rows: rows.collect(),
            most: DOTS,
        };
        match plot.svg() {
            svg if svg.is_empty() => svg,
            svg => format!("<h3>{}</h3><div class='scroll'>{svg}</div>", escape(title)),
        }
    };
    let plots = [
        of("PSNR in dB", |v| v.psnr),
        of("SSIM", |v| v.ssim),
        of("LPIPS", |v| v.lpips),
        of("CLIP score", |v| v.clip),
    ]
    .concat();
    match plots.is_empty() {
        true => "<p>No picture differs from its reference.</p>".into(),
        false => format!(
            "{plots}<p class='note'>A dot for each picture (of more than {DOTS}, for so many of them, evenly \
             taken), a line at the mean of all.</p>"
        ),
    }
}

/// The first prompts' pictures under every arm, below what each is compared with.
fn grid(results: &Results) -> String {
    let mut out = format!(
        "<p class='note'>The first {SHOWN} prompts: what a setting is compared with (where it is another than \
         at its left), its picture, and where they differ ({AMPLIFIED} times as bright).</p>"
    );
    let indices: BTreeSet<usize> = results.rows.iter().map(|row| row.index).collect();
    for index in indices.into_iter().take(SHOWN) {
        let rows: Vec<&Row> = results
            .rows
            .iter()
            .filter(|row| row.index == index)
            .collect();
        let mut shown = None;
        let (mut heads, mut cells) = (String::new(), String::new());
        for row in &rows {
            let arm = results.record.arms.iter().find(|arm| arm.name == row.arm);
            let Some(arm) = arm else {
                continue;
            };
            let reference = results.picture(&arm.reference, index);
            if shown != Some(&arm.reference) {
                shown = Some(&arm.reference);
                heads += &format!("<th>{}</th>", escape(&arm.reference));
                cells += &format!(
                    "<td>{}</td>",
                    file(
                        reference.as_deref(),
                        &format!("{}, prompt {index}", arm.reference)
                    )
                );
            }
            let own = results.picture(&arm.folder, index);
            let map = difference(row, reference.as_deref(), own.as_deref());
            heads += &format!("<th>{}</th>", escape(&row.arm));
            cells += &format!(
                "<td>{}{map}</td>",
                file(own.as_deref(), &format!("{}, prompt {index}", row.arm))
            );
        }
        let prompt = rows.first().map_or("", |row| row.prompt.as_str());
        out += &format!(
            "<h3>{}. {}</h3><div class='scroll grid'><table><tr>{heads}</tr><tr>{cells}</tr></table></div>",
            index + 1,
            escape(prompt),
        );
    }
    out
}

/// A picture, or that it is not here: shards may be merged without their pictures.
fn file(path: Option<&Path>, alt: &str) -> String {
    let bytes = path.and_then(|path| std::fs::read(path).ok());
    bytes.map_or_else(|| "not here".into(), |bytes| image(&bytes, alt))
}

/// What is to be said of how a picture differs, with a map where one can be made.
fn difference(row: &Row, reference: Option<&Path>, own: Option<&Path>) -> String {
    let Some(values) = row.outcome.measured() else {
        return "not measured".into();
    };
    if values.identical {
        return "identical".into();
    }
    let psnr = values.psnr.map(|db| format!("{db:.2} dB"));
    let map = reference.zip(own).and_then(|(a, b)| difference_map(a, b));
    let alt = format!("where {} differs, prompt {}", row.arm, row.index);
    map.map_or_else(String::new, |png| image(&png, &alt)) + &psnr.unwrap_or_default()
}

/// A PNG of the largest difference of each pixel's three bytes, amplified; none of pictures that cannot be
/// read or differ in size.
fn difference_map(a: &Path, b: &Path) -> Option<Vec<u8>> {
    let (a, b) = (Rgb8::read(a).ok()?, Rgb8::read(b).ok()?);
    let size = [a.width, a.height];
    if size != [b.width, b.height] {
        return None;
    }
    let pixels = a.bytes.as_chunks::<3>().0;
    let pairs = pixels.iter().zip(b.bytes.as_chunks::<3>().0);
    let grey = pairs.map(|(a, b)| {
        let largest = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max();
        (u16::from(largest.unwrap_or(0)) * AMPLIFIED).min(255) as u8
    });
    let grey: Vec<u8> = grey.collect();
    encode_png(size, png::ColorType::Grayscale, &grey, &[]).ok()
}

fn image(png: &[u8], alt: &str) -> String {
    let (alt, data) = (escape(alt), base64(png));
    format!("<img alt='{alt}' src='data:image/png;base64,{data}'>")
}

fn failures(summary: &Summary) -> String {
    if summary.failed.is_empty() {
        return String::new();
    }
    let items = summary.failed.iter().map(|failed| {
        let text = format!("{}, prompt {}: {}", failed.arm, failed.index, failed.reason);
        format!("<li>{}</li>", escape(&text))
    });
    format!("<h2>Missing</h2><ul>{}</ul>", items.collect::<String>())
}
