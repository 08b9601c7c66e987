// One dashboard on a page of its own: its title, its rows, its panels where its JSON puts them.

import { createRoot } from 'react-dom/client';
import { DataFrame, EventBusSrv, ThemeContext, createTheme, dateTime } from '@grafana/data';
import { GlobalStyles, PanelChrome, PanelContextProvider } from '@grafana/ui';
import { Panel, Series, framesOf } from './frames';
import { Visual } from './panels';

interface Page {
  title: string;
  chosen: Record<string, string>;
  from_ms: number;
  to_ms: number;
  panels: Array<{ panel: Panel; step_ms: number; answers: Series[][] }>;
}

declare global {
  interface Window {
    page: Page;
  }
}

// Grafana's own measures of its grid.
const COLUMNS = 24;
const ROW_PX = 30;
const GAP_PX = 8;

const page = window.page;
const theme = createTheme({ colors: { mode: 'dark' } });
const width = document.documentElement.clientWidth - 2 * GAP_PX;
const range = {
  from: dateTime(page.from_ms),
  to: dateTime(page.to_ms),
  raw: { from: dateTime(page.from_ms), to: dateTime(page.to_ms) },
};

function place({ x, y, w, h }: Panel['gridPos']) {
  const column = (width + GAP_PX) / COLUMNS;
  return {
    left: x * column,
    top: y * (ROW_PX + GAP_PX),
    width: w * column - GAP_PX,
    height: h * (ROW_PX + GAP_PX) - GAP_PX,
  };
}

function Placed({ panel, frames }: { panel: Panel; frames: DataFrame[] }) {
  const at = place(panel.gridPos);
  if (panel.type === 'row') {
    return <div style={{ position: 'absolute', ...at, ...theme.typography.h6, lineHeight: '30px' }}>{panel.title}</div>;
  }
  return (
    <div style={{ position: 'absolute', ...at }}>
      <PanelChrome title={panel.title} description={panel.description} width={at.width} height={at.height}>
        {(inner, high) => (
          <Visual panel={panel} frames={frames} range={range} theme={theme} width={inner} height={high} />
        )}
      </PanelChrome>
    </div>
  );
}

async function draw() {
  const drawn = await Promise.all(
    page.panels.map(async ({ panel, answers, step_ms }) => ({
      panel,
      frames: panel.type === 'row' ? [] : await framesOf(panel, answers, step_ms, theme),
    }))
  );
  const chosen = Object.entries(page.chosen).map(([name, value]) => `${name}: ${value}`);
  const period = `${range.from.utc().format('HH:mm:ss')} to ${range.to.utc().format('HH:mm:ss')} UTC`;
  createRoot(document.getElementById('root')!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={{ eventsScope: 'page', eventBus: new EventBusSrv() }}>
        <div style={{ padding: GAP_PX, background: theme.colors.background.canvas, minHeight: '100vh' }}>
          <div style={{ ...theme.typography.h4, marginBottom: GAP_PX, display: 'flex', gap: 24 }}>
            <span>{page.title}</span>
            <span style={{ ...theme.typography.body, color: theme.colors.text.secondary }}>
              {[...chosen, period].join('   ·   ')}
            </span>
          </div>
          <div style={{ position: 'relative' }}>
            {drawn.map((each) => (
              <Placed key={each.panel.id} {...each} />
            ))}
          </div>
        </div>
      </PanelContextProvider>
    </ThemeContext.Provider>
  );
}

draw();
