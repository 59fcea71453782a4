"""Analysis of an evaluation: precision-recall curves, sizes, confusions, kinds of errors and the worst images."""

from mask_rcnn.evaluation.analysis.analysis import Analysis, KindAnalysis, analyse

__all__ = ['Analysis', 'KindAnalysis', 'analyse']
