//! Plots of a simulation: in the terminal, and as SVG.

use std::fmt::Write as _;

use plotters::{
    prelude::{ChartBuilder, Circle, IntoDrawingArea as _, LineSeries, SVGBackend},
    style::{Color as _, RGBColor},
};

use crate::simulate::{Point, Run};

const WIDTH: usize = 72;
const HEIGHT: usize = 10;
const BLUE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const ORANGE: RGBColor = RGBColor(0xc2, 0x5b, 0x00);
const GREY: RGBColor = RGBColor(0x77, 0x77, 0x77);

/// Splits the points into the columns of the terminal.
fn columns(run: &Run) -> Vec<&[Point]> {
    let n = run.points.len().clamp(1, WIDTH);
    (0..n).map(|column| &run.points[column * run.points.len() / n..(column + 1) * run.points.len() / n]).collect()
}

fn highest(points: &[Point]) -> Option<f64> {
    points.iter().filter_map(|point| point.pressure).max_by(f64::total_cmp)
}

/// Plots utilization as bars, the threshold as a line, openness as a row of digits (tenths), and decisions as marks.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Rows and columns.
pub fn terminal(run: &Run) -> String {
    let columns = columns(run);
    let top = columns.iter().filter_map(|points| highest(points)).fold(1.25, f64::max);
    let line = (HEIGHT as f64 / top).round() as usize;
    let mut text = String::new();
    for row in (1..=HEIGHT).rev() {
        let label = if row == line { "100%" } else { "" };
        let _ = write!(text, "{label:>6} ");
        for points in &columns {
            let filled = highest(points).map(|utilization| utilization / top * HEIGHT as f64);
            text.push(match filled {
                Some(filled) if filled >= row as f64 => '█',
                Some(filled) if filled >= row as f64 - 0.5 => '▄',
                _ if row == line => '─',
                None if row == 1 => '?',
                _ => ' ',
            });
        }
        text.push('\n');
    }
    text.push_str("  open ");
    text.extend(columns.iter().map(|points| match points.last().map(|point| point.openness / 10) {
        Some(10) => '*',
        Some(tenths) => char::from_digit(tenths.into(), 10).unwrap_or(' '),
        None => ' ',
    }));
    text.push_str("\n       ");
    text.extend(columns.iter().map(|points| {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return ' ' };
        let decided = run.decisions.iter().rfind(|d| (first.time..=last.time).contains(&d.time));
        decided.map_or(' ', |d| if d.tightens() { 'v' } else { '^' })
    }));
    text.push_str(
        "\n  Bars: utilization, in percent of the threshold; ?: missing. Open: tenths, * is as declared. v tightens, ^ relaxes.\n",
    );
    text
}

/// Plots utilization, openness, the threshold and decisions over time.
#[allow(clippy::cast_precision_loss)] // Seconds.
pub fn svg(run: &Run) -> Result<String, String> {
    let mut text = String::new();
    {
        let fail = |error: &dyn std::error::Error| error.to_string();
        let area = SVGBackend::with_string(&mut text, (960, 420)).into_drawing_area();
        area.fill(&plotters::style::WHITE).map_err(|e| fail(&e))?;
        let hours = |time: i64| time as f64 / 3600.0;
        let end = run.points.last().map_or(1.0, |point| hours(point.time)).max(0.1);
        let top = run.points.iter().filter_map(|point| point.pressure).fold(1.25, f64::max) * 100.0;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .caption("Utilization (blue) and openness (orange), in percent; threshold (grey)", ("sans-serif", 16))
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..end, 0.0..top)
            .map_err(|e| fail(&e))?;
        chart
            .configure_mesh()
            .x_desc("hours")
            .y_desc("percent")
            .light_line_style(plotters::style::WHITE)
            .draw()
            .map_err(|e| fail(&e))?;
        chart.draw_series(LineSeries::new([(0.0, 100.0), (end, 100.0)], &GREY)).map_err(|e| fail(&e))?;
        // Missing samples are a gap: the stretches between them are separate lines.
        for stretch in run.points.split(|point| point.pressure.is_none()).filter(|stretch| !stretch.is_empty()) {
            let line = stretch.iter().filter_map(|point| Some((hours(point.time), point.pressure? * 100.0)));
            chart.draw_series(LineSeries::new(line, &BLUE)).map_err(|e| fail(&e))?;
        }
        let openness = run.points.iter().map(|point| (hours(point.time), f64::from(point.openness)));
        chart.draw_series(LineSeries::new(openness, ORANGE.stroke_width(2))).map_err(|e| fail(&e))?;
        let marks = run.decisions.iter().map(|d| Circle::new((hours(d.time), f64::from(d.to_percent)), 4, ORANGE.filled()));
        chart.draw_series(marks).map_err(|e| fail(&e))?;
        area.present().map_err(|e| fail(&e))?;
    }
    Ok(text)
}
