/** Return 32 random hexadecimal digits. Without HTTPS there is no crypto.randomUUID, and React Native has no crypto. */
export function randomKey(): string {
  const bytes = new Uint8Array(16);
  if (typeof crypto === "undefined") bytes.forEach((_, index) => (bytes[index] = Math.random() * 256));
  else crypto.getRandomValues(bytes);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
