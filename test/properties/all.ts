// All laws, for the suite and for the fuzzer.
import type { Law } from './laws.ts';
import { httpLaws } from './http.ts';
import { keyLaws } from './keys.ts';
import { tokenLaws } from './tokens.ts';
import type { Scope } from '../support/support.ts';

export async function allLaws(scope: Scope): Promise<Law[]> {
  return [...(await tokenLaws()), ...(await keyLaws(scope)), ...(await httpLaws(scope))];
}
