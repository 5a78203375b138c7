// All laws, for the suite and for the fuzzer.
import type { Law } from './properties.ts';
import { httpLaws } from './properties-http.ts';
import { keyLaws } from './properties-keys.ts';
import { tokenLaws } from './properties-tokens.ts';
import type { Scope } from './support.ts';

export async function allLaws(scope: Scope): Promise<Law[]> {
  return [...await tokenLaws(), ...await keyLaws(scope), ...await httpLaws(scope)];
}
