// A panel of each kind that the dashboards have, drawn by Grafana's own components.

import { DataFrame, Field, GrafanaTheme2, TimeRange, getFieldDisplayName, getActiveThreshold } from '@grafana/data';
import { BigValue, TimeSeries, UPlotChart, UPlotConfigBuilder, VizLegend, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import {
  AxisPlacement,
  LegendDisplayMode,
  ScaleDirection,
  ScaleOrientation,
  VizOrientation,
} from '@grafana/schema';
import { Panel, numbers } from './frames';

export interface Drawn {
  panel: Panel;
  frames: DataFrame[];
  range: TimeRange;
  theme: GrafanaTheme2;
  width: number;
  height: number;
}

export function Visual(drawn: Drawn) {
  const { panel, frames } = drawn;
  if (!frames.some((frame) => frame.length > 0)) {
    const said = panel.fieldConfig.defaults.noValue ?? 'No data';
    return <div style={{ ...centred, width: drawn.width, height: drawn.height }}>{said}</div>;
  }
  switch (panel.type) {
    case 'timeseries':
      return (
        <TimeSeries
          frames={frames}
          structureRev={1}
          timeRange={drawn.range}
          timeZone="utc"
          width={drawn.width}
          height={drawn.height}
          legend={panel.options.legend}
          options={panel.options}
        />
      );
    case 'stat':
      return <Stat {...drawn} />;
    case 'table':
      return <TableNG data={frames[0]} width={drawn.width} height={drawn.height} fieldConfig={panel.fieldConfig} />;
    case 'status-history':
      return <StatusHistory {...drawn} />;
    default:
      throw new Error(`no component draws a panel of kind ${panel.type}`);
  }
}

const centred = { display: 'flex', alignItems: 'center', justifyContent: 'center', opacity: 0.65 } as const;

function Stat({ panel, frames, theme, width, height }: Drawn) {
  const values = numbers(frames).map((field) => ({
    ...field.display!(field.values[field.values.length - 1]),
    title: getFieldDisplayName(field, frames[0], frames),
  }));
  return (
    <VizRepeater
      source={values}
      getValues={() => values}
      renderCounter={values.length}
      width={width}
      height={height}
      orientation={VizOrientation.Auto}
      renderValue={({ value, width, height }) => (
        <BigValue
          theme={theme}
          value={value}
          width={width}
          height={height}
          colorMode={panel.options.colorMode}
          graphMode={panel.options.graphMode}
          textMode={panel.options.textMode}
          justifyMode={panel.options.justifyMode}
          count={values.length}
        />
      )}
    />
  );
}

// Status history is a panel of Grafana's application and not of its library: its cells are drawn here, on the
// library's plot, in the colours of the library's field display.
function StatusHistory({ panel, frames, range, theme, width, height }: Drawn) {
  const fields = numbers(frames);
  const legend = panel.options.legend.showLegend ? thresholdItems(fields[0], theme) : [];
  const legendHeight = legend.length ? 30 : 0;
  const times = frames[0].fields[0].values;
  const stepMs = frames[0].fields[0].config.interval ?? 0;
  const builder = new UPlotConfigBuilder('utc');
  builder.addScale({
    scaleKey: 'x',
    isTime: true,
    orientation: ScaleOrientation.Horizontal,
    direction: ScaleDirection.Right,
    range: () => [range.from.valueOf(), range.to.valueOf()],
  });
  builder.addScale({
    scaleKey: 'y',
    orientation: ScaleOrientation.Vertical,
    direction: ScaleDirection.Up,
    range: () => [0, fields.length],
  });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: AxisPlacement.Bottom, timeZone: 'utc', theme });
  builder.addAxis({
    scaleKey: 'y',
    placement: AxisPlacement.Left,
    splits: fields.map((_, row) => row + 0.5),
    values: () => fields.map((_, row) => name(fields[fields.length - 1 - row], frames)),
    grid: { show: false },
    theme,
  });
  builder.addHook('draw', (plot) => {
    const share = panel.options.rowHeight ?? 0.9;
    fields.forEach((field, index) => {
      const row = fields.length - 1 - index;
      const top = plot.valToPos(row + 0.5 + share / 2, 'y', true);
      const bottom = plot.valToPos(row + 0.5 - share / 2, 'y', true);
      const frame = frames.find((each) => each.fields.includes(field))!;
      frame.fields[0].values.forEach((time: number, at: number) => {
        if (field.values[at] == null || Number.isNaN(field.values[at])) {
          return;
        }
        const left = plot.valToPos(time - stepMs / 2, 'x', true);
        const right = plot.valToPos(time + stepMs / 2, 'x', true);
        plot.ctx.fillStyle = field.display!(field.values[at]).color!;
        plot.ctx.fillRect(left, top, Math.max(1, right - left - 1), bottom - top);
      });
    });
  });
  return (
    <div>
      <UPlotChart
        data={[times as number[], times.map(() => null)]}
        config={builder}
        width={width}
        height={height - legendHeight}
      />
      {legendHeight > 0 && <VizLegend items={legend} displayMode={LegendDisplayMode.List} placement="bottom" />}
    </div>
  );
}

function name(field: Field, frames: DataFrame[]): string {
  return getFieldDisplayName(field, frames.find((frame) => frame.fields.includes(field)), frames);
}

// What the core application writes below a status history whose colours come from thresholds.
function thresholdItems(field: Field, theme: GrafanaTheme2) {
  const steps = field.config.thresholds!.steps;
  if (field.config.color?.mode !== 'thresholds') {
    return [];
  }
  return steps.map((step, at) => {
    const from = field.display!(step.value);
    const next = steps[at + 1] && field.display!(steps[at + 1].value);
    const said = (value: typeof from) => `${value.text}${value.suffix ?? ''}`;
    return {
      label: at === 0 ? `< ${said(next!)}` : `${said(from)}+`,
      color: theme.visualization.getColorByName(getActiveThreshold(step.value, steps).color),
      yAxis: 1,
    };
  });
}
