//! Plots in SVG.

use std::fmt::Write;

use crate::markup::escape;

/// Rows of dots, one row for each arm.
pub(super) struct DotPlot<'a> {
    /// What the values are.
    pub title: &'a str,
    /// Each arm's name, its values, and what is to be said of it at the right.
    pub rows: Vec<(&'a str, Vec<f64>, String)>,
    /// Of more values in a row, so many have a dot.
    pub most: usize,
}

/// In pixels.
const ROW: f64 = 26.0;
const LABELS: f64 = 340.0;
const VALUES: f64 = 480.0;
const NOTES: f64 = 140.0;

impl DotPlot<'_> {
    /// A dot for each value and a line at the mean; nothing where there is no value.
    pub(super) fn svg(&self) -> String {
        let values = || self.rows.iter().flat_map(|(_, values, _)| values);
        let lowest = values().copied().fold(f64::INFINITY, f64::min);
        let highest = values().copied().fold(f64::NEG_INFINITY, f64::max);
        if lowest > highest {
            return String::new();
        }
        // All values alike still need a scale.
        let margin = ((highest - lowest) * 0.05)
            .max(highest.abs() * 1e-3)
            .max(1e-6);
        let (low, high) = (lowest - margin, highest + margin);
        let x = |value: f64| LABELS + VALUES * (value - low) / (high - low);
        let height = ROW * (self.rows.len() + 2) as f64;
        let mut svg = format!(
            "<svg viewBox='0 0 {} {height}' width='{}' role='img'><title>{}</title>",
            LABELS + VALUES + NOTES,
            LABELS + VALUES + NOTES,
            escape(self.title),
        );
        let mut add = |shape: std::fmt::Arguments| {
            // Writing to a string cannot fail.
            let _ = svg.write_fmt(shape);
        };
        for (i, (name, values, note)) in self.rows.iter().enumerate() {
            let y = ROW * (i as f64 + 0.5);
            let (name, note) = (escape(name), escape(note));
            let (right, text) = (LABELS - 12.0, y + 4.0);
            add(format_args!(
                "<text x='{right}' y='{text}' text-anchor='end'>{name}</text>"
            ));
            let end = LABELS + VALUES;
            add(format_args!(
                "<line class='axis' x1='{LABELS}' y1='{y}' x2='{end}' y2='{y}'/>"
            ));
            for value in values
                .iter()
                .step_by(values.len().div_ceil(self.most.max(1)).max(1))
            {
                let x = x(*value);
                add(format_args!("<circle cx='{x:.1}' cy='{y}' r='4'/>"));
            }
            if !values.is_empty() {
                let mean = x(values.iter().sum::<f64>() / values.len() as f64);
                let (top, bottom) = (y - 9.0, y + 9.0);
                add(format_args!(
                    "<line class='mean' x1='{mean:.1}' y1='{top}' x2='{mean:.1}' y2='{bottom}'/>"
                ));
            }
            let left = end + 10.0;
            add(format_args!("<text x='{left}' y='{text}'>{note}</text>"));
        }
        let y = ROW * (self.rows.len() as f64 + 0.7);
        for i in 0..=4 {
            let value = low + (high - low) * f64::from(i) / 4.0;
            let (x, digits) = (x(value), if high - low > 8.0 { 1 } else { 4 });
            add(format_args!(
                "<text class='tick' x='{x:.1}' y='{y}' text-anchor='middle'>{value:.digits$}</text>"
            ));
        }
        svg + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_dot_and_every_row_its_mean() {
        let rows = vec![
            ("a<b", vec![10.0, 20.0], String::new()),
            ("c", Vec::new(), "3 identical".into()),
        ];
        let plot = |most| DotPlot {
            title: "t",
            rows: rows.clone(),
            most,
        };
        assert_eq!(plot(1).svg().matches("<circle").count(), 1);
        let svg = plot(9).svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("class='mean'").count(), 1);
        assert!(svg.contains("a&lt;b") && svg.contains("3 identical"));
        // The mean is the middle of the scale.
        assert!(svg.contains(&format!("x1='{:.1}'", LABELS + VALUES / 2.0)));
    }

    #[test]
    fn no_value_is_no_plot() {
        let rows = vec![("a", Vec::new(), String::new())];
        let (title, most) = ("t", 9);
        assert_eq!(DotPlot { title, rows, most }.svg(), "");
    }
}
