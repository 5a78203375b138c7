// A real browser for the suites that look at pages.
import { type Browser, chromium } from 'playwright-core';
import { findProgram } from './support.js';

const program = findProgram('chromium') ?? findProgram('google-chrome');

/** Test options: without a browser the tests are skipped, but in CI they run and fail. */
export const needsChromium: { skip: string | false } = {
  skip: program || process.env.CI ? false : 'chromium is not installed',
};

export function launchChromium(): Promise<Browser> {
  return chromium.launch({
    executablePath: program ?? 'chromium', // in CI: fails, saying so
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--host-resolver-rules=MAP page.example 127.0.0.1', // an origin that is no secure context
    ],
  });
}
