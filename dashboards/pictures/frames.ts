// What a store answered, as Grafana's data frames with a panel's own field configuration applied.

import {
  DataFrame,
  DataTransformerConfig,
  Field,
  FieldConfigOptionsRegistry,
  FieldConfigPropertyItem,
  FieldType,
  GrafanaTheme2,
  Labels,
  applyFieldOverrides,
  cacheFieldDisplayNames,
  getDisplayProcessor,
  identityOverrideProcessor,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

export interface Series {
  metric: Labels;
  values?: Array<[number, string]>;
  value?: [number, string];
}

export interface Panel {
  id: number;
  type: string;
  title: string;
  description: string;
  gridPos: { x: number; y: number; w: number; h: number };
  fieldConfig: { defaults: Record<string, any>; overrides: any[] };
  options: any;
  targets: Array<{ refId: string; legendFormat: string; format?: string }>;
  transformations?: DataTransformerConfig[];
}

// What a panel of Grafana sets where its JSON says nothing.
const COLOR: Record<string, object> = {
  timeseries: { mode: 'palette-classic' },
  'status-history': { mode: 'thresholds' },
  stat: { mode: 'thresholds' },
  table: { mode: 'thresholds' },
};
const THRESHOLDS = { mode: 'absolute', steps: [{ value: -Infinity, color: 'green' }, { value: 80, color: 'red' }] };

// Grafana's core application registers these; the library has the type of a registry and no entry in it.
const OPTIONS = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'thresholds', 'mappings', 'links', 'color'];
const CUSTOM = ['lineWidth', 'fillOpacity', 'spanNulls', 'drawStyle', 'pointSize', 'showPoints', 'stacking'];
CUSTOM.push('axisSoftMin', 'axisSoftMax', 'width', 'align', 'cellOptions', 'hideFrom', 'hidden', 'thresholdsStyle');

function registry(): FieldConfigOptionsRegistry {
  const item = (id: string, isCustom: boolean) =>
    ({
      id: isCustom ? `custom.${id}` : id,
      path: id,
      name: id,
      isCustom,
      process: identityOverrideProcessor,
      shouldApply: () => true,
      override: () => null,
      editor: () => null,
      settings: {},
    }) as unknown as FieldConfigPropertyItem;
  return new FieldConfigOptionsRegistry(() => [
    ...OPTIONS.map((id) => item(id, false)),
    ...CUSTOM.map((id) => item(id, true)),
  ]);
}

standardTransformersRegistry.setInit(() =>
  // Two names there are one transformation.
  [...new Map(Object.values(standardTransformers).map((each) => [each.id, each])).values()].map((transformation) => ({
    id: transformation.id,
    transformation: () => Promise.resolve(transformation),
    editor: () => null,
    name: transformation.name,
    imageDark: '',
    imageLight: '',
  }))
);

// As the Prometheus data source names a series.
function named(format: string, labels: Labels): string {
  return format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => labels[label] ?? '');
}

function timeSeries(panel: Panel, answers: Series[][], stepMs: number): DataFrame[] {
  return answers.flatMap((series, target) =>
    series.map(({ metric, values }) =>
      toDataFrame({
        refId: panel.targets[target].refId,
        fields: [
          { name: 'Time', type: FieldType.time, values: values!.map(([s]) => s * 1000), config: { interval: stepMs } },
          {
            name: 'Value',
            type: FieldType.number,
            values: values!.map(([, text]) => Number(text)),
            labels: metric,
            config: { displayNameFromDS: named(panel.targets[target].legendFormat, metric) },
          },
        ],
      })
    )
  );
}

function newest(panel: Panel, answers: Series[][]): DataFrame[] {
  return answers.flatMap((series, target) =>
    series.map(({ metric, value }) =>
      toDataFrame({
        refId: panel.targets[target].refId,
        fields: [
          { name: 'Time', type: FieldType.time, values: [value![0] * 1000], config: {} },
          {
            name: 'Value',
            type: FieldType.number,
            values: [Number(value![1])],
            labels: metric,
            config: { displayNameFromDS: named(panel.targets[target].legendFormat, metric) },
          },
        ],
      })
    )
  );
}

// A column a label, as the data source answers where the format is "table".
function table(panel: Panel, answers: Series[][]): DataFrame[] {
  return answers.map((series, target) => {
    const labels = [...new Set(series.flatMap(({ metric }) => Object.keys(metric)))].sort();
    const several = answers.length > 1 ? ` #${panel.targets[target].refId}` : '';
    return toDataFrame({
      refId: panel.targets[target].refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: series.map(({ value }) => value![0] * 1000), config: {} },
        ...labels.map((label) => ({
          name: label,
          type: FieldType.string,
          values: series.map(({ metric }) => metric[label] ?? ''),
          config: {},
        })),
        {
          name: `Value${several}`,
          type: FieldType.number,
          values: series.map(({ value }) => Number(value![1])),
          config: {},
        },
      ],
    });
  });
}

export async function framesOf(
  panel: Panel,
  answers: Series[][],
  stepMs: number,
  theme: GrafanaTheme2
): Promise<DataFrame[]> {
  const read = panel.type === 'table' ? table : panel.type === 'stat' ? newest : timeSeries;
  let frames: DataFrame[] =
    read === timeSeries ? timeSeries(panel, answers, stepMs) : (read as typeof newest)(panel, answers);
  if (panel.transformations?.length) {
    frames = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  }
  const defaults = { color: COLOR[panel.type], thresholds: THRESHOLDS, ...panel.fieldConfig.defaults };
  const configured = applyFieldOverrides({
    data: frames,
    fieldConfig: { defaults, overrides: panel.fieldConfig.overrides },
    fieldConfigRegistry: registry(),
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  let series = 0;
  for (const frame of configured) {
    for (const field of frame.fields) {
      if (field.type === FieldType.number) {
        field.state = { ...field.state, seriesIndex: series++ };
        field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
      }
    }
  }
  cacheFieldDisplayNames(configured);
  return configured;
}

export function numbers(frames: DataFrame[]): Field[] {
  return frames.flatMap((frame) => frame.fields.filter((field) => field.type === FieldType.number));
}
