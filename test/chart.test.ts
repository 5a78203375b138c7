// The chart that `npm run bench -- --svg FILE` draws, as a README shows it: an image in a real browser.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Browser } from 'playwright-core';
import { chart } from '../scripts/bench-chart.js';
import type { Row } from '../scripts/bench-rows.js';
import { launchChromium, needsChromium } from './support/chromium.js';

const row = (label: string, ratio: number): Row => ({
  what: label,
  label,
  figure: '578,000/s',
  reference: '382,000/s',
  ratio,
});
const bars = [0.75, 0.9, 1, 1.26, 1.86, 9.99, 16.2, 66.7].map((ratio) =>
  row(`Known tokens, beside <${ratio}> & "more"`, ratio),
);
const svg = chart(
  [...bars, { what: 'no ratio', label: 'left out', figure: '1' }, { ...row('', 2), label: '' }],
  'a & b',
);

describe('the chart of the bench', needsChromium, () => {
  let browser: Browser;
  before(async () => {
    browser = await launchChromium();
  });
  after(() => browser?.close());

  it('has a bar and a text for each labelled row with a ratio, all in the picture and none over another', async (t) => {
    const tab = await browser.newPage();
    t.after(() => tab.close());
    await tab.setContent(svg);
    const texts = await tab.locator('text').evaluateAll((all) =>
      all.map((text) => {
        const { left, right, top, bottom } = text.getBoundingClientRect();
        return { text: text.textContent ?? '', left, right, top, bottom };
      }),
    );
    for (const { label = '' } of bars)
      assert.ok(
        texts.some(({ text }) => text === label),
        label,
      );
    assert.deepEqual(
      texts.map(({ text }) => text).filter((text) => /^[\d.]+×$/.test(text)),
      ['0.5', '1', '2', '5', '10', '20', '50', '100', '0.75', '0.90', '1.00', '1.26', '1.86', '9.99', '16', '67'].map(
        (one) => `${one}×`,
      ),
    );
    const frame = await tab.locator('svg').boundingBox();
    assert.ok(frame);
    for (const one of texts) {
      assert.ok(
        one.left >= frame.x && one.right <= frame.x + frame.width && one.bottom <= frame.y + frame.height,
        one.text,
      );
      for (const other of texts) {
        const apart =
          one.right <= other.left || other.right <= one.left || one.bottom <= other.top || other.bottom <= one.top;
        assert.ok(one === other || apart, `${one.text} over ${other.text}`);
      }
    }
    const rects = await tab
      .locator('rect:not(.paper)')
      .evaluateAll((all) => all.map((bar) => bar.getAttribute('class')));
    assert.deepEqual(rects, ['less', 'less', 'more', 'more', 'more', 'more', 'more', 'more']);
  });

  for (const colorScheme of ['light', 'dark'] as const) {
    it(`is an image that can be read in the ${colorScheme}`, async (t) => {
      const context = await browser.newContext({ colorScheme });
      t.after(() => context.close());
      const tab = await context.newPage();
      await tab.setContent(`<img src="data:image/svg+xml,${encodeURIComponent(svg)}">`);
      /** Relative luminance (WCAG 2) of every pixel of the title's lines: the paper, and the ink farthest from it. */
      const contrast = await tab.evaluate(async () => {
        const image = document.querySelector('img');
        if (!image) throw new Error('no image');
        await image.decode();
        const canvas = Object.assign(document.createElement('canvas'), { width: 580, height: 76 });
        const context = canvas.getContext('2d');
        if (!context) throw new Error('no canvas');
        context.drawImage(image, 0, 0);
        const { data } = context.getImageData(0, 0, 580, 76);
        const linear = (octet = 0): number => {
          const part = octet / 255;
          return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        };
        const luminances = Array.from({ length: 580 * 76 }, (_, i) => {
          const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
          return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
        }).toSorted((a, b) => a - b);
        const [darkest = 0, middle = 0, lightest = 0] = [0, 580 * 38, 580 * 76 - 1].map((i) => luminances[i]);
        return { paper: middle, ratio: (lightest + 0.05) / (darkest + 0.05) };
      });
      assert.ok(colorScheme === 'light' ? contrast.paper > 0.9 : contrast.paper < 0.05, 'brings its own paper');
      assert.ok(contrast.ratio > 7, `a contrast of ${contrast.ratio}`);
    });
  }
});
