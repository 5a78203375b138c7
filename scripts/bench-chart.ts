// The bench's main ratios as an SVG for the README: one file, no script, no font, readable in light and dark.
import type { Row } from './bench-rows.js';

const [WIDTH, LEFT, RIGHT, TOP, STEP, BAR] = [580, 20, 560, 96, 48, 14];

const style = `
  svg { --paper: #ffffff; --ink: #1f2328; --quiet: #59636e; --line: #d1d9e0; --more: #0969da; --less: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #0d1117; --ink: #f0f6fc; --quiet: #9198a1; --line: #3d444d; --more: #4493f8; --less: #f0883e; }
  }
  text { font: 14px system-ui, sans-serif; fill: var(--ink); }
  text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
  .title { font-size: 18px; font-weight: 600; }
  .quiet { font-size: 12px; fill: var(--quiet); }
  .ratio { font-weight: 600; }
  .paper { fill: var(--paper); }
  .line { stroke: var(--line); }
  .one { stroke: var(--quiet); stroke-width: 1.5; }
  .more { fill: var(--more); }
  .less { fill: var(--less); }`;

const escape = (text: string): string => text.replace(/[&<>"]/g, (sign) => `&#${sign.codePointAt(0)};`);

/** The lines of the axis: 1, 2 and 5 of every power of ten, from one below all ratios to one above them. */
function ticksFor(ratios: number[]): number[] {
  const all = [0.01, 0.1, 1, 10, 100, 1000].flatMap((power) => [power, 2 * power, 5 * power]);
  const low = all.findLastIndex((tick) => tick <= Math.min(0.5, ...ratios));
  const high = all.findIndex((tick) => tick > Math.max(1, ...ratios));
  return all.slice(Math.max(0, low), high + 1);
}

/** Draws the rows that have a label and a ratio. A ratio is how many times as fast we are. */
export function chart(rows: Row[], subtitle: string): string {
  const bars = rows.flatMap((row) => (row.label && row.ratio ? [{ ...row, label: row.label, ratio: row.ratio }] : []));
  const ticks = ticksFor(bars.map(({ ratio }) => ratio));
  const [first = 0.5, last = 2] = [ticks[0], ticks.at(-1)];
  const x = (ratio: number): number =>
    Math.round(LEFT + ((RIGHT - LEFT) * Math.log(ratio / first)) / Math.log(last / first));
  const bottom = TOP + STEP * bars.length;
  const axis = ticks.map(
    (
      tick,
    ) => `<line class="${tick === 1 ? 'one' : 'line'}" x1="${x(tick)}" x2="${x(tick)}" y1="${TOP - 8}" y2="${bottom}"/>
<text class="quiet" x="${x(tick)}" y="${bottom + 18}" text-anchor="middle">${tick}×</text>`,
  );
  const drawn = bars.map(({ label, ratio, figure, reference = '' }, i) => {
    const [y, from, to] = [TOP + STEP * i, x(Math.min(1, ratio)), x(Math.max(1, ratio))];
    return `<text x="${LEFT}" y="${y + 10}">${escape(label)}</text>
<text class="quiet" x="${RIGHT}" y="${y + 10}" text-anchor="end">${escape(`${figure} to ${reference}`)}</text>
<rect class="${ratio < 1 ? 'less' : 'more'}" x="${from}" y="${y + 18}" width="${to - from}" height="${BAR}" rx="2"/>
<text class="ratio" x="${to + 6}" y="${y + 30}">${ratio.toFixed(ratio < 10 ? 2 : 0)}×</text>`;
  });
  const height = bottom + 34;
  const title = 'How many times as fast';
  const size = `width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} role="img" aria-label="${title}">
<title>${title}</title>
<style>${style}
</style>
<rect class="paper" width="100%" height="100%" rx="8"/>
<text class="title" x="${LEFT}" y="32">${title}</text>
<text class="quiet" x="${LEFT}" y="52">Blue is faster than what it stands beside, orange slower. Logarithmic.</text>
<text class="quiet" x="${LEFT}" y="70">${escape(subtitle)}</text>
${[...axis, ...drawn].join('\n')}
</svg>
`;
}
