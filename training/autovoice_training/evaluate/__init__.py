"""Evaluation of a voice by judges that share nothing with the conversion's own ops.

A run converts sentences never trained on between speakers, measures the result beside the unconverted
source, a WORLD shift, copy-synthesis and the target's own rendition of the sentence, and writes JSON,
Markdown and PNG.

    dataset   the sentences and voices
    pairs     which source is converted into which target, balanced over the conditions
    systems   what makes the audio that is judged
    runtime   the voice under test through the public runtime
    pitch, speaker, cepstrum, words   the judges
    judging   all judges on one pair, with their answers kept on disk
    running   the pairs in several processes
    summary, floor, report, plots     what is written
    conditions, naturalness, robustness   transposed, noisy and sung sources, by a command of their own
    examples  conversions to listen to, by a command of their own
"""
