//! The rows as a drawing: seconds and megabytes of a call, a bar for each row.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Report;
use super::row::Summary;
use super::table::link;
use crate::error::{Error, Result};
use crate::evaluation::markup::escape;

/// Pixels of a row, and of what is above and below all rows.
const ROW: u32 = 34;
const ABOVE: u32 = 96;
const BELOW: u32 = 50;
/// Pixels for the names of the rows, and of either panel.
const NAMES: u32 = 310;
const PANEL: u32 = 440;

// On white each is readable: 4.5:1 at least (WCAG 2.1, 1.4.3).
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const LINK: RGBColor = RGBColor(0xa8, 0x5b, 0x00);
const REST: RGBColor = RGBColor(0x3b, 0x6e, 0xa5);
const UP: RGBColor = RGBColor(0x2f, 0x7a, 0x45);
const DOWN: RGBColor = RGBColor(0x7a, 0x4f, 0x9a);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A part of a row's bar.
struct Bar {
    /// On the panel's axis.
    along: Range<f64>,
    /// Of the row's height, 0 at its foot.
    across: Range<f64>,
    color: RGBColor,
}

/// One panel: a number of each row along an axis.
struct Panel<'a> {
    /// What the axis shows, with its unit.
    axis: &'a str,
    legend: [(&'a str, RGBColor); 2],
    /// For each row its bars, and what is written behind them.
    rows: Vec<(Vec<Bar>, String)>,
}

/// The drawing as SVG.
///
/// # Errors
/// [`Error::Plot`].
pub fn draw(report: &Report) -> Result<String> {
    let size = (
        NAMES + 2 * PANEL,
        ABOVE + BELOW + ROW * report.rows.len() as u32,
    );
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw_on(&root, report).map_err(|e| Error::Plot(e.to_string()))?;
        root.present().map_err(|e| Error::Plot(e.to_string()))?;
    }
    Ok(titled(svg, &report.subject.title()))
}

/// For who cannot see it: what the drawing is.
fn titled(svg: String, what: &str) -> String {
    let title = format!(
        "<title>Seconds and megabytes of a U-Net call: {}</title>",
        escape(what)
    );
    match svg.split_once("<svg ") {
        Some((before, rest)) => match rest.split_once('>') {
            Some((attributes, inside)) => {
                format!("{before}<svg role=\"img\" {attributes}>\n{title}{inside}")
            }
            None => svg,
        },
        None => svg,
    }
}

fn draw_on(
    root: &Area<'_>,
    report: &Report,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let left = Pos::new(HPos::Left, VPos::Center);
    root.draw(&Text::new(
        report.subject.title(),
        (14, 20),
        style(21).pos(left),
    ))?;
    let below = match report.link {
        Some(_) => format!("{}, emulated", link(report.link)),
        None => link(report.link),
    };
    root.draw(&Text::new(below, (14, 42), style(17).pos(left)))?;
    let (_, height) = root.dim_in_pixel();
    let (names, panels) = root.split_horizontally(NAMES);
    let (seconds, megabytes) = panels.split_horizontally(PANEL);
    seconds_panel(&report.rows).draw(&seconds)?;
    megabytes_panel(&report.rows).draw(&megabytes)?;
    for (i, row) in report.rows.iter().enumerate() {
        let middle = ABOVE + ROW * i as u32 + ROW / 2;
        let right = Pos::new(HPos::Right, VPos::Center);
        let at = (NAMES as i32 - 10, middle.min(height) as i32);
        names.draw(&Text::new(row.label.clone(), at, style(17).pos(right)))?;
    }
    Ok(())
}

fn seconds_panel(rows: &[Summary]) -> Panel<'static> {
    let rows = rows.iter().map(|row| {
        let all = row.seconds_per_call_median;
        // The link's part is computed; on a busy machine it may be the smaller estimate.
        let link = row.link_seconds_per_call.unwrap_or(0.0).min(all);
        let bar = |along, color| Bar {
            along,
            across: 0.22..0.78,
            color,
        };
        let bars = vec![bar(0.0..link, LINK), bar(link..all, REST)];
        (bars, format!("{} s", short(all)))
    });
    Panel {
        axis: "seconds a U-Net call (median)",
        legend: [("on the link (computed)", LINK), ("the rest", REST)],
        rows: rows.collect(),
    }
}

fn megabytes_panel(rows: &[Summary]) -> Panel<'static> {
    let rows = rows.iter().map(|row| {
        let [up, down] = [row.bytes_up_per_call, row.bytes_down_per_call].map(|b| b as f64 / 1e6);
        let bar = |mb, across, color| Bar {
            along: 0.0..mb,
            across,
            color,
        };
        let bars = vec![bar(up, 0.5..0.82, UP), bar(down, 0.18..0.5, DOWN)];
        (bars, format!("{} / {} MB", short(up), short(down)))
    });
    Panel {
        axis: "megabytes a U-Net call, all workers",
        legend: [("up", UP), ("down", DOWN)],
        rows: rows.collect(),
    }
}

impl Panel<'_> {
    fn draw(&self, area: &Area<'_>) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let ends = self
            .rows
            .iter()
            .flat_map(|(bars, _)| bars)
            .map(|b| b.along.end);
        let most = ends.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let n = self.rows.len();
        let mut chart = ChartBuilder::on(area)
            .margin_top(ABOVE)
            .margin_right(24)
            .x_label_area_size(BELOW)
            // Room for what is written behind the longest bar.
            .build_cartesian_2d(0.0..most * 1.35, 0.0..n as f64)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_labels(6)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .x_desc(self.axis)
            .label_style(style(16))
            .axis_desc_style(style(17))
            .draw()?;
        for (i, (bars, text)) in self.rows.iter().enumerate() {
            let foot = (n - 1 - i) as f64;
            chart.draw_series(bars.iter().map(|bar| {
                let corners = [
                    (bar.along.start, foot + bar.across.start),
                    (bar.along.end, foot + bar.across.end),
                ];
                Rectangle::new(corners, bar.color.filled())
            }))?;
            let end = bars.iter().map(|bar| bar.along.end).fold(0.0, f64::max);
            let (x, y) = chart.backend_coord(&(end, foot + 0.5));
            let behind = style(16).pos(Pos::new(HPos::Left, VPos::Center));
            let (left, top) = area.get_base_pixel();
            area.draw(&Text::new(text.clone(), (x - left + 6, y - top), behind))?;
        }
        for (i, (text, color)) in self.legend.iter().enumerate() {
            let (x, y) = (i as i32 * 210, ABOVE as i32 - 20);
            area.draw(&Rectangle::new(
                [(x, y - 6), (x + 12, y + 6)],
                color.filled(),
            ))?;
            let beside = style(16).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new((*text).to_owned(), (x + 18, y), beside))?;
        }
        Ok(())
    }
}

/// Three digits, or as many as there are before the point.
fn short(value: f64) -> String {
    let digits = match value {
        0.0 => 0,
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// `size` is in units of which a pixel has 1.24: plotters draws letters by their full height.
fn style(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contrast to white (WCAG 2.1).
    fn contrast(RGBColor(r, g, b): RGBColor) -> f64 {
        let linear = |byte: u8| {
            let value = f64::from(byte) / 255.0;
            match value <= 0.03928 {
                true => value / 12.92,
                false => ((value + 0.055) / 1.055).powf(2.4),
            }
        };
        1.05 / (0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05)
    }

    #[test]
    fn what_is_drawn_stands_out() {
        for color in [INK, LINK, REST, UP, DOWN] {
            assert!(contrast(color) >= 4.5, "{color:?}: {:.2}", contrast(color));
        }
        assert!((contrast(BLACK) - 21.0).abs() < 1e-9);
    }

    #[test]
    fn a_drawing_has_a_title() {
        let svg = titled("<?xml?>\n<svg width=\"1\">x</svg>".into(), "a<b");
        assert!(
            svg.contains("<svg role=\"img\" width=\"1\">\n<title>"),
            "{svg}"
        );
        assert!(svg.contains("call: a&lt;b</title>x</svg>"), "{svg}");
    }
}
