"""Evaluation of a voice by judges that share nothing with the conversion's own ops.

A run converts recordings between the voices of a folder, as they are and transposed, noisy and sung, measures
the result beside the unconverted source, a WORLD shift, copy-synthesis and the target's own rendition of the
sentence, and writes JSON, Markdown and PNG.

    dataset   the sentences and voices
    pairs     which source is converted into which target, balanced over seen, unseen, same and cross sex
    conditions   what makes a conversion harder
    systems   what makes the audio that is judged
    runtime   the voice under test through the public runtime
    pitch, speaker, cepstrum, words, naturalness   the judges
    judging   all judges on one pair, with their answers kept on disk
    running   the conversions in several processes
    summary, floor, report, plots     what is written
    examples  conversions to listen to, by a command of their own
"""
